"""The audit log of whole jobs."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import REGISTRY

from cloister_operator import metrics  # noqa: F401 (registers them)
from cloister_operator.decide.audit import audit_entries, deletion_entry
from cloister_operator.names import Step
from cloister_operator.observe.gpu_time import gpu_seconds
from support.operator_values import OUTPUT, PREPARED, PUBLISHED
from support.operator_world import World


def entries(world: World) -> list[dict[str, object]]:
    """Decide once, and what the audit says of it."""
    seen = world.observe()
    return audit_entries(seen.job, seen.status, world.step().status)


def test_every_step_of_note_is_one_line_with_who_asked() -> None:
    asked = {"requestedBy": "ada", "ticket": "X-1"}
    world = World({"spec.provenance": asked})
    told = entries(world)
    world.succeed(Step.PREPARE, PREPARED)
    told += entries(world)
    world.running()
    told += entries(world)
    world.pass_time(seconds=60)
    world.ray("SUCCEEDED")
    told += entries(world)
    world.succeed(Step.PUBLISH, PUBLISHED)
    told += entries(world)
    told += entries(world)
    assert [line["what"] for line in told] == ["accepted", "attempt", "completed"]
    assert all(line["audit"] == 1 and line["provenance"] == asked for line in told)
    assert (told[-1]["output"], told[-1]["gpuSeconds"]) == (OUTPUT["uri"], 60)
    seen = world.observe()
    assert deletion_entry(seen.job, seen.status, 60)["what"] == "deleted"


def test_a_refused_job_and_a_failed_one_are_told_apart() -> None:
    refused = World({"spec.network.egress": "Open"})
    assert [(line["what"], line["reason"]) for line in entries(refused)] == [("refused", "PolicyDenied")]
    failed = World()
    entries(failed)
    failed.refuse(Step.PREPARE, "ModelNotFound", exit_code=10)
    assert [(line["what"], line["reason"]) for line in entries(failed)] == [("failed", "ModelNotFound")]


def test_the_operations_page_has_every_field_and_every_metric() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/operations.md").read_text()
    world = World({"spec.provenance": {"ticket": "X-1"}})
    told = entries(world)
    world.prepared()
    world.running()
    told += entries(world)
    world.ray("SUCCEEDED")
    world.settle()
    world.succeed(Step.PUBLISH, PUBLISHED)
    told += entries(world)
    told.append(deletion_entry(world.observe().job, world.status, 0))
    told += entries(World({"spec.network.egress": "Open"}))
    for field in {field for line in told for field in line}:
        assert f"`{field}`" in page
    for what in {str(line["what"]) for line in told}:
        assert f"`{what}`" in page
    own = [metric for metric in REGISTRY.collect() if metric.name.startswith("cloister_")]
    assert len(own) == len(re.findall(r"^\| `cloister_", page, re.MULTILINE))
    for metric in own:
        assert f"`{metric.name}{'_total' if metric.type == 'counter' else ''}`" in page


def test_gpu_time_counts_until_now() -> None:
    """A job that is deleted after days of training has used them."""
    world = World({"spec.distribution": {"workers": 4, "gpusPerWorker": 8}})
    world.prepared()
    world.running()
    world.settle()
    world.pass_time(days=3)
    assert gpu_seconds(world.job, world.now) == 3 * 86400 * 32
    world.ray("SUCCEEDED")
    world.settle()
    world.pass_time(days=3)
    assert gpu_seconds(world.job, world.now) == world.status.gpu_seconds == 3 * 86400 * 32
