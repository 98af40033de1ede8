"""What a watch tells: news puts a job on the queue, the operator's own writes and repetitions do not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from cloister_operator.gather import Gatherer
from cloister_operator.handlers import GATHER_SECONDS, Operator
from cloister_operator.names import DENY_POLICY, MANAGED_BY_LABEL, MANAGER, Step
from cloister_operator.recent import EVENTS_SECONDS
from cloister_operator.reconcile import FOLLOW_UP_SECONDS, Reconciler, StaleError
from cloister_operator.settings_file import Configuration
from cloister_operator.store import Store
from support.memory_cluster import MemoryCluster
from support.operator_world import World

KEY = ("legal", "contracts")


def queued(tell: Callable[[Operator], Awaitable[Any]], wait_s: float = 0.0) -> int:
    """How many jobs are due so long after something was told."""

    async def run() -> int:
        operator = Operator(Configuration(World().settings, None), 0, 0, 0)
        await tell(operator)
        await asyncio.sleep(wait_s)
        return len(operator.queue)

    return asyncio.run(run())


def child(version: int) -> dict[str, Any]:
    labels = {"cloister.dev/job": "contracts"}
    return {"metadata": {"uid": "u", "namespace": "legal", "resourceVersion": str(version), "labels": labels}}


def test_a_job_is_looked_at_at_once_and_its_children_a_moment_later() -> None:
    world = World()
    assert queued(lambda operator: operator._see({"type": "ADDED", "object": world.job}, param="FineTuneJob")) == 1

    async def pod(operator: Operator) -> None:
        await operator._see({"type": "ADDED", "object": child(5)}, param="Pod")
        assert len(operator.queue) == 0

    assert queued(pod, wait_s=2 * GATHER_SECONDS) == 1


def test_what_the_operator_wrote_itself_is_no_news() -> None:
    async def tell(operator: Operator) -> None:
        operator.store.put("Job", child(5))
        await operator._see({"type": "ADDED", "object": child(5)}, param="Job")

    assert queued(tell, wait_s=2 * GATHER_SECONDS) == 0


def test_a_pass_that_did_something_is_followed_by_another() -> None:
    world, store = World(), Store()
    store.put("FineTuneJob", world.job)
    reconciler = Reconciler(MemoryCluster(world), store, world.settings, clock=lambda: world.now)
    assert asyncio.run(reconciler(KEY)) == FOLLOW_UP_SECONDS


def test_a_job_that_was_just_written_is_not_read_again_before_its_children_are_made() -> None:
    world, store = World(), Store()
    store.put("FineTuneJob", world.job)
    cluster, read = MemoryCluster(world), []

    async def get(kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        read.append(kind)
        return await MemoryCluster.get(cluster, kind, namespace, name)

    cluster.get = get  # type: ignore[method-assign]
    asyncio.run(Reconciler(cluster, store, world.settings, clock=lambda: world.now)(KEY))
    assert "Job contracts-prepare" in world.made and "FineTuneJob" not in read


def test_nothing_is_made_for_a_job_whose_status_write_shows_that_it_goes() -> None:
    world, store = World(), Store()
    store.put("FineTuneJob", world.job)
    cluster = MemoryCluster(world)

    async def deleted_first(kind: str, found: dict[str, Any], patch: Any) -> dict[str, Any]:
        written = await MemoryCluster.patch_status(cluster, kind, found, patch)
        return {**written, "metadata": {**written["metadata"], "deletionTimestamp": "2026-01-02T02:10:00Z"}}

    cluster.patch_status = deleted_first  # type: ignore[method-assign]
    with pytest.raises(StaleError):
        asyncio.run(Reconciler(cluster, store, world.settings, clock=lambda: world.now)(KEY))
    assert world.made == []


def test_events_are_asked_for_seldom_and_not_about_what_was_just_made() -> None:
    world, store, asked = World(), Store(), []
    world.settle()
    cluster = MemoryCluster(world)

    async def note(kind: str, namespace: str | None, **selectors: str) -> None:
        asked.append(selectors["field_selector"])

    cluster.list = note  # type: ignore[method-assign]
    job = world.step_job(Step.PREPARE)
    store.put("Job", job)
    passed = 0.0
    gatherer = Gatherer(cluster, store, lambda: passed)

    def look(seconds: float) -> int:
        nonlocal passed
        passed = seconds
        asyncio.run(gatherer.gather(KEY, world.job, [], world.now + timedelta(seconds=seconds)))
        return len(asked)

    assert look(0) == 0
    assert look(EVENTS_SECONDS) == 1
    assert look(EVENTS_SECONDS + 1) == 1
    assert look(2 * EVENTS_SECONDS) == 2


def test_jobs_are_found_by_namespace_and_by_output() -> None:
    world, store = World(), Store()
    store.put("FineTuneJob", world.job)
    output = world.job["spec"]["output"]["uri"]
    assert store.jobs_in("legal") == store.jobs_with_output(output) == [world.job]
    store.drop("FineTuneJob", world.job)
    assert store.jobs_in("legal") == store.jobs_with_output(output) == []


def test_the_namespace_s_policy_that_somebody_deletes_is_missed_by_all_its_jobs() -> None:
    world = World()
    policy = {"metadata": {"name": DENY_POLICY, "namespace": "legal", "uid": "p", "resourceVersion": "9"}}

    async def tell(operator: Operator) -> None:
        operator.store.put("FineTuneJob", world.job)
        operator.store.put("NetworkPolicy", policy)
        await operator._see({"type": "DELETED", "object": policy}, param="NetworkPolicy")

    assert queued(tell, wait_s=2 * GATHER_SECONDS) == 1


def look_at(world: World, cluster: MemoryCluster) -> None:
    store = Store()
    store.put("FineTuneJob", world.job)
    asyncio.run(Reconciler(cluster, store, world.settings, clock=lambda: world.now)(KEY))


def test_a_policy_that_another_job_made_a_moment_ago_is_as_good() -> None:
    world = World()
    world.add("NetworkPolicy", DENY_POLICY, metadata={"labels": {MANAGED_BY_LABEL: MANAGER}})
    look_at(world, MemoryCluster(world))
    assert world.made == ["NetworkPolicy contracts", "ConfigMap contracts-run", "Job contracts-prepare"]


def test_no_pod_is_made_beside_a_policy_of_somebody_else() -> None:
    world = World()
    world.add("NetworkPolicy", "contracts")
    with pytest.raises(StaleError, match="NetworkPolicy contracts is there already"):
        look_at(world, MemoryCluster(world))
    assert "Job contracts-prepare" not in world.made


def test_a_refused_run_file_is_told_and_no_pod_is_made() -> None:
    world = World()
    world.refused = {"contracts-run": "403 exceeded quota: count/configmaps"}
    world.settle()
    assert world.status.reason == "PodsForbidden"
    assert "exceeded quota: count/configmaps" in (world.status.message or "")
    assert "Job contracts-prepare" not in world.made


def test_a_job_cannot_have_the_name_of_the_namespace_s_policy() -> None:
    world = World({"metadata.name": DENY_POLICY})
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Failed", "SpecInvalid")
    assert "choose another name" in (world.status.message or "") and world.made == []
