"""The store and the queue: what was seen last, and one look at a time."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import aiohttp

from cloister_operator.cluster import ClusterError
from cloister_operator.health import serve_health
from cloister_operator.listeners import listen
from cloister_operator.names import DENY_POLICY
from cloister_operator.reconcile import Reconciler
from cloister_operator.store import Key, Store
from cloister_operator.work_queue import WorkQueue
from support.memory_cluster import KINDS, MemoryCluster
from support.operator_world import World
from support.seaweedfs import free_ports

A, B = ("legal", "a"), ("legal", "b")


def seen(uid: str, version: int, job: str = "a") -> dict[str, Any]:
    labels = {"cloister.dev/job": job}
    return {"metadata": {"uid": uid, "namespace": "legal", "resourceVersion": str(version), "labels": labels}}


def uids(store: Store, key: Key = A) -> list[str]:
    return sorted(found["metadata"]["uid"] for found in store.of("Pod", key))


def test_a_list_takes_away_what_is_gone_and_keeps_what_is_newer() -> None:
    store = Store()
    for uid, version in (("gone", 5), ("stays", 6), ("made after the list", 12)):
        store.put("Pod", seen(uid, version))
    news, lost = store.replace("Pod", [seen("stays", 6), seen("new", 9)], version=10)
    assert [[found["metadata"]["uid"] for found in each] for each in (news, lost)] == [["new"], ["gone"]]
    assert uids(store) == ["made after the list", "new", "stays"]


def test_an_older_version_changes_nothing() -> None:
    store = Store()
    store.put("Pod", seen("x", 7))
    store.put("Pod", seen("x", 5, job="b"))
    assert (uids(store, A), uids(store, B)) == (["x"], [])
    store.drop("Pod", seen("x", 8))
    assert uids(store) == []


def test_what_a_pod_showed_is_kept_until_its_job_was_looked_at() -> None:
    """KubeRay deletes a failed pod within a second; its last words come with the deletion."""
    world = World()
    world.prepared()
    world.running()
    world.settle()
    state = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    pod = world.pod(world.cluster(), "worker", phase="Failed", state=state, node="node-7")
    pod["metadata"]["labels"]["cloister.dev/job"] = "contracts"
    del world.objects["Pod", pod["metadata"]["name"]]
    store, cluster = Store(), MemoryCluster(world)
    load(store, cluster)
    key = ("legal", "contracts")
    store.drop("Pod", pod)
    reconciler = Reconciler(cluster, store, world.settings, clock=lambda: world.now)
    asyncio.run(reconciler(key))
    (attempt,) = world.status.attempts or []
    assert (attempt.reason, attempt.node) == ("OutOfMemory", "node-7")
    assert store.departed(key) == []


def load(store: Store, cluster: MemoryCluster) -> None:
    for kind in ("FineTuneJob", *KINDS):
        listing = asyncio.run(cluster.list(kind, None))
        assert listing is not None
        for found in listing.items:
            if kind in ("Pod", "RayCluster"):
                labels = found["metadata"].setdefault("labels", {})
                labels |= {"cloister.dev/job": "contracts", "cloister.dev/role": labels.get("ray.io/node-type", "")}
        store.replace(kind, listing.items, listing.version)


def test_a_job_is_looked_at_once_however_often_it_is_added_and_never_twice_at_a_time() -> None:
    looked: list[Key] = []
    busy: set[Key] = set()

    async def look(key: Key) -> float | None:
        assert key not in busy
        busy.add(key)
        looked.append(key)
        if len(looked) == 1:
            queue.add(key)
        await asyncio.sleep(0)
        busy.discard(key)
        return None

    async def run() -> None:
        for _ in range(5):
            queue.add(A)
        queue.add(B)
        workers = [asyncio.create_task(queue.run(look)) for _ in range(3)]
        async with asyncio.timeout(5):
            while len(looked) < 3:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        for worker in workers:
            worker.cancel()

    queue = WorkQueue()
    asyncio.run(run())
    assert sorted(looked) == [A, A, B]


def test_a_failed_look_is_repeated_and_stops_no_other() -> None:
    looked: list[Key] = []

    async def look(key: Key) -> float | None:
        looked.append(key)
        if looked.count(A) == 1 and key == A:
            raise OSError("away")
        return None

    async def run() -> None:
        queue.add(A)
        queue.add(B, after=0.01)
        worker = asyncio.create_task(queue.run(look))
        async with asyncio.timeout(5):
            while looked.count(A) < 2:
                await asyncio.sleep(0.01)
        worker.cancel()

    queue = WorkQueue()
    asyncio.run(run())
    assert looked == [A, B, A]


def test_a_listener_sends_a_line_back() -> None:
    async def run() -> bytes:
        async with await listen("127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"cloister 0123\n")
            line = await reader.readline()
            writer.close()
            await writer.wait_closed()
            return line

    assert asyncio.run(run()) == b"cloister 0123\n"


def test_health_tells_what_holds_now() -> None:
    holds = {"alive": True, "ready": False}

    async def ask() -> dict[str, int]:
        answers = {}
        async with (
            serve_health(port, lambda: holds["alive"], lambda: holds["ready"]),
            aiohttp.ClientSession() as client,
        ):
            for path in ("healthz", "readyz"):
                async with client.get(f"http://127.0.0.1:{port}/{path}") as answer:
                    answers[path] = answer.status
        return answers

    (port,) = free_ports(1)
    assert asyncio.run(ask()) == {"healthz": 200, "readyz": 503}
    holds.update(alive=False, ready=True)
    assert asyncio.run(ask()) == {"healthz": 503, "readyz": 200}


def test_a_policy_of_an_earlier_job_is_looked_at_until_it_is_gone() -> None:
    """Policies are not watched: what the store knows of them may be long gone."""
    world, store = World(), Store()
    earlier = {**world.job, "metadata": {"name": "contracts", "uid": "earlier"}}
    policy = world.add("NetworkPolicy", "contracts", earlier)
    policy["metadata"]["labels"] = {"cloister.dev/job": "contracts"}
    store.put("FineTuneJob", world.job)
    store.put("NetworkPolicy", policy)
    reconciler = Reconciler(MemoryCluster(world), store, world.settings, clock=lambda: world.now)
    asyncio.run(reconciler(("legal", "contracts")))
    assert "earlier job" in (world.status.message or "")
    del world.objects["NetworkPolicy", "contracts"]
    asyncio.run(reconciler(("legal", "contracts")))
    assert "NetworkPolicy contracts" in world.made


def test_the_namespace_s_policy_is_made_anew_for_the_next_job() -> None:
    world, store = World(), Store()
    reconciler = Reconciler(MemoryCluster(world), store, world.settings, clock=lambda: world.now)
    store.put("FineTuneJob", world.job)
    asyncio.run(reconciler(("legal", "contracts")))
    store.drop("FineTuneJob", world.job)
    asyncio.run(reconciler(("legal", "contracts")))
    asyncio.run(reconciler(("legal", "")))
    world.collect()
    world.bump(world.job)
    assert ("NetworkPolicy", DENY_POLICY) not in world.objects
    store.put("FineTuneJob", world.job)
    asyncio.run(reconciler(("legal", "contracts")))
    assert ("NetworkPolicy", DENY_POLICY) in world.objects


def test_an_event_is_told_though_the_child_is_refused() -> None:
    world, store = World(), Store()
    cluster = MemoryCluster(world)
    reconciler = Reconciler(cluster, store, world.settings, clock=lambda: world.now)
    store.put("FineTuneJob", world.job)

    async def refuse(rendered: dict[str, Any]) -> dict[str, Any]:
        if rendered["kind"] == "Job":
            raise ClusterError(403, "exceeded quota: small")
        return await MemoryCluster.create(cluster, rendered)

    cluster.create = refuse  # type: ignore[method-assign]
    for _ in range(4):
        with suppress(ClusterError):
            asyncio.run(reconciler(("legal", "contracts")))
    assert "PodsForbidden" in cluster.told


def test_a_log_that_cannot_be_read_keeps_nothing_back() -> None:
    """The submitter's node is away: its kubelet answers nothing, and KubeRay still tells how the run ended."""
    world = World()
    world.prepared()
    world.running()
    world.ray("SUCCEEDED", "Complete")
    store, cluster = Store(), MemoryCluster(world)
    load(store, cluster)

    async def away(namespace: str, pod: str, container: str) -> str:
        asked.append(pod)
        raise ClusterError(500, "dial tcp: i/o timeout")

    asked: list[str] = []
    cluster.log = away  # type: ignore[method-assign]
    asyncio.run(Reconciler(cluster, store, world.settings, clock=lambda: world.now)(("legal", "contracts")))
    assert asked and world.status.phase == "Publishing"


def test_no_log_is_read_of_a_pod_that_only_has_the_labels() -> None:
    world = World()
    world.prepared()
    world.running()
    store, cluster = Store(), MemoryCluster(world)
    load(store, cluster)
    forged = seen("forged", 1, job="contracts")
    forged["metadata"] |= {"name": "forged"}
    forged["metadata"]["labels"]["cloister.dev/role"] = "submitter"
    store.put("Pod", forged)
    asked: list[str] = []

    async def note(namespace: str, pod: str, container: str) -> str:
        asked.append(pod)
        return ""

    cluster.log = note  # type: ignore[method-assign]
    asyncio.run(Reconciler(cluster, store, world.settings, clock=lambda: world.now)(("legal", "contracts")))
    assert asked and "forged" not in asked


def test_what_is_known_of_a_job_goes_with_it() -> None:
    world, store = World(), Store()
    reconciler = Reconciler(MemoryCluster(world), store, world.settings, clock=lambda: world.now)
    failed = seen("x", 1, job="contracts") | {"status": {"phase": "Failed"}}
    store.put("Pod", failed)
    store.drop("Pod", failed)
    assert store.departed(("legal", "contracts"))
    asyncio.run(reconciler(("legal", "contracts")))
    assert store.departed(("legal", "contracts")) == []
