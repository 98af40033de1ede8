"""The lists that the operator reads at its start and after a watch lost events."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from cloister_operator.cluster import ClusterError, Listing
from cloister_operator.handlers import Operator
from cloister_operator.reconcile import Reconciler
from cloister_operator.settings_file import Configuration
from support.memory_cluster import MemoryCluster
from support.operator_world import World


class BrokenCluster(MemoryCluster):
    """Cannot list some kinds."""

    broken: frozenset[str] = frozenset()
    jobs_are_gone = False

    async def list(self, kind: str, namespace: str | None, **selectors: str) -> Listing | None:
        if kind in self.broken:
            raise ClusterError(500, f"conversion webhook of {kind} failed")
        if kind == "FineTuneJob" and self.jobs_are_gone:
            return Listing([], 10**9)
        return await super().list(kind, namespace, **selectors)


def list_all(operator: Operator, cluster: Any, world: World) -> int:
    """List once; how many jobs are due then."""

    async def run() -> int:
        await operator._resync(cluster, Reconciler(cluster, operator.store, world.settings))
        return len(operator.queue)

    return asyncio.run(run())


def new_operator(world: World) -> Operator:
    return Operator(Configuration(world.settings, None), 0, 0, 0)


def test_a_kueue_that_is_broken_keeps_no_job_back() -> None:
    world = World()
    cluster, operator = BrokenCluster(world), new_operator(world)
    cluster.broken = frozenset({"Workload"})
    assert list_all(operator, cluster, world) == 1


def test_without_the_list_of_a_kind_that_jobs_need_nothing_is_decided() -> None:
    world = World()
    cluster, operator = BrokenCluster(world), new_operator(world)
    cluster.broken = frozenset({"Pod"})
    with pytest.raises(ClusterError):
        list_all(operator, cluster, world)


def test_a_deletion_that_only_a_list_shows_is_audited_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    cluster, operator = BrokenCluster(world), new_operator(world)
    list_all(operator, cluster, world)
    cluster.jobs_are_gone = True
    with caplog.at_level(logging.INFO, "cloister_operator.handlers"):
        list_all(operator, cluster, world)
        list_all(operator, cluster, world)
        asyncio.run(operator._see({"type": "DELETED", "object": world.job}, param="FineTuneJob"))
    assert [record.getMessage() for record in caplog.records] == ["deleted legal/contracts"]


def test_lists_are_read_until_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    cluster, operator = BrokenCluster(world), new_operator(world)
    cluster.broken = frozenset({"Pod"})
    monkeypatch.setattr("cloister_operator.handlers.RETRY_SECONDS", 0.01)

    async def run() -> None:
        reconciler = Reconciler(cluster, operator.store, world.settings)
        listing = asyncio.create_task(operator._keep_listing(cluster, reconciler))
        await asyncio.sleep(0.05)
        assert not operator._listed.is_set()
        cluster.broken = frozenset()
        async with asyncio.timeout(5):
            await operator._listed.wait()
        listing.cancel()

    asyncio.run(run())
