"""The operator's edge against a cluster in memory, with an operator that can be killed at any call of the API."""

from __future__ import annotations

import asyncio
import copy
import json
from typing import Any

from cloister_operator.cluster import Cluster, ClusterError, Listing
from cloister_operator.decide.actions import Create, Delete
from cloister_operator.reconcile import Reconciler
from cloister_operator.store import Store
from support.operator_world import World

KINDS = ("Job", "Pod", "RayJob", "RayCluster", "Workload", "ConfigMap", "NetworkPolicy")


class KilledError(BaseException):
    """The operator's process is gone."""


class MemoryCluster(Cluster):
    """A World as the API: versions, conflicts and names that are taken."""

    def __init__(self, world: World, dies_at: int | None = None, *, before: bool = True) -> None:
        self.world = world
        self.calls: list[str] = []
        self.told: list[str] = []
        self._dies_at, self._before = dies_at, before

    async def list(self, kind: str, namespace: str | None, **selectors: str) -> Listing | None:
        if kind == "RayJob" and not self.world.ray_installed:
            return None
        found = [self.world.job] if kind == "FineTuneJob" else self.world.find(kind)
        return Listing(copy.deepcopy(found), self.world.version)

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        found = self.world.job if kind == "FineTuneJob" else self.world.objects.get((kind, name))
        return copy.deepcopy(found)

    async def patch_status(self, kind: str, found: dict[str, Any], patch: Any) -> dict[str, Any]:
        def write() -> dict[str, Any]:
            live = self.world.job["metadata"]
            if found["metadata"]["resourceVersion"] != live["resourceVersion"]:
                raise ClusterError(409, "the job changed")
            self.world.patch_status(patch)
            return copy.deepcopy(self.world.job)

        return self._write(f"patch {kind} {json.dumps(patch)}", write)

    async def patch(self, kind: str, found: dict[str, Any], patch: Any) -> dict[str, Any]:
        name = found["metadata"]["name"]

        def write() -> dict[str, Any]:
            self.world.patch(kind, name, patch)
            return copy.deepcopy(self.world.objects[kind, name])

        return self._write(f"patch {kind} {name}", write)

    async def create(self, rendered: dict[str, Any]) -> dict[str, Any]:
        if rendered["kind"] == "Event":
            self.told.append(rendered["reason"])
            return rendered
        key = (rendered["kind"], rendered["metadata"]["name"])

        def write() -> dict[str, Any]:
            if key in self.world.objects:
                raise ClusterError(409, "there is one already")
            self.world.act(Create(rendered))
            return copy.deepcopy(self.world.objects[key])

        return self._write(f"create {key[0]} {key[1]}", write)

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        self._write(f"delete {kind} {name}", lambda: self.world.delete(Delete(kind, name, uid)) or {})

    async def log(self, namespace: str, pod: str, container: str) -> str:
        return self.world.logs.get(self.world.objects["Pod", pod]["metadata"]["uid"], "")

    def _write(self, what: str, write: Any) -> Any:
        dies = len(self.calls) == self._dies_at
        self.calls.append(what)
        if dies and self._before:
            raise KilledError
        answer = write()
        if dies:
            raise KilledError
        return answer


async def settle(cluster: MemoryCluster) -> None:
    """Operators, each new where the one before was killed, until one finds nothing to do. Watches see all at once."""
    world, quiet = cluster.world, 0
    reconciler = None
    while quiet < 2:
        if reconciler is None:
            store = Store()
            reconciler = Reconciler(cluster, store, world.settings, clock=lambda: world.now)
        for kind in ("FineTuneJob", *KINDS):
            listing = await cluster.list(kind, None)
            if listing is not None:
                store.replace(kind, listing.items, listing.version)
        calls = len(cluster.calls)
        try:
            await reconciler(("legal", "contracts"))
        except KilledError:
            reconciler = None
        world.collect()
        quiet = quiet + 1 if len(cluster.calls) == calls and reconciler else 0


def run(cluster: MemoryCluster) -> None:
    """`settle`, from plain code."""
    asyncio.run(settle(cluster))
