"""The operator is killed before and after every write that it makes; the next one comes to the same end."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from cloister_api.events import FailureSeen
from cloister_api.reasons import FailureReason
from cloister_operator.names import Step
from support.memory_cluster import MemoryCluster, run
from support.operator_values import PREPARED, PUBLISHED
from support.operator_world import World


def labelled(world: World) -> None:
    """Pods, clusters and workloads carry the job's label, by which watches find them."""
    for (kind, _), found in world.objects.items():
        if kind in ("Pod", "RayCluster"):
            found["metadata"].setdefault("labels", {})["cloister.dev/job"] = "contracts"
    for pod in world.find("Pod"):
        role = pod["metadata"]["labels"].get("ray.io/node-type", "")
        pod["metadata"]["labels"]["cloister.dev/role"] = role


def happy(world: World) -> list[Callable[[], Any]]:
    return [
        lambda: world.succeed(Step.PREPARE, PREPARED),
        world.running,
        lambda: world.ray("SUCCEEDED", "Complete"),
        lambda: world.succeed(Step.PUBLISH, PUBLISHED),
    ]


def retried(world: World) -> list[Callable[[], Any]]:
    def fail() -> None:
        line = world.line(FailureSeen(reason=FailureReason.NODE_LOST, message="Gone.", step=1, node="n"))
        world.ray("FAILED", "Failed", reason="AppFailed", message=line)

    return [
        lambda: world.refuse(Step.PREPARE, "Internal", exit_code=12),
        lambda: world.pass_time(minutes=1),
        lambda: world.succeed(Step.PREPARE, PREPARED),
        world.running,
        fail,
        lambda: world.pass_time(minutes=1),
        world.running,
        lambda: world.change("suspend", True),
        lambda: world.change("suspend", False),
        world.running,
        lambda: world.ray("SUCCEEDED", "Complete"),
        lambda: world.refuse(Step.PUBLISH, "AdapterInvalid"),
    ]


def story(plot: Callable[[World], list[Callable[[], Any]]], dies_at: int | None, *, before: bool) -> MemoryCluster:
    world = World()
    cluster = MemoryCluster(world, dies_at, before=before)
    run(cluster)
    for happening in plot(world):
        happening()
        labelled(world)
        run(cluster)
    return cluster


@pytest.mark.parametrize("plot", [happy, retried])
def test_a_killed_operator_leaves_no_trace(plot: Callable[[World], list[Callable[[], Any]]]) -> None:
    told = story(plot, None, before=True)
    assert told.world.status.phase == ("Complete" if plot is happy else "Failed")
    for number in range(len(told.calls)):
        for before in (True, False):
            again = story(plot, number, before=before)
            where = f"killed {'before' if before else 'after'} {told.calls[number]}"
            assert json.dumps(again.world.job["status"]) == json.dumps(told.world.job["status"]), where
            assert again.world.made == told.world.made, where


def test_the_status_of_a_job_that_changed_meanwhile_is_not_written() -> None:
    world = World()
    cluster = MemoryCluster(world)

    async def suspended_first(kind: str, found: dict[str, Any], patch: Any) -> dict[str, Any]:
        if not world.job["spec"].get("suspend"):
            world.change("suspend", True)
        return await MemoryCluster.patch_status(cluster, kind, found, patch)

    cluster.patch_status = suspended_first  # type: ignore[method-assign]
    with pytest.raises(Exception, match="the job changed"):
        run(cluster)
    assert not world.made
