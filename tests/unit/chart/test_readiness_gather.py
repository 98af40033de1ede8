"""What `helm test` sees in a cluster, and that it waits for nothing longer than the whole test may take."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from cloister_api.termination import Outcome, TerminationMessage
from cloister_operator.cluster import Cluster, ClusterError, Listing
from cloister_operator.readiness import gather
from cloister_operator.readiness.facts import Expectations, InputsFound, JobFound, KubeRayFound, Obstacle
from cloister_operator.readiness.plan import Plan
from support.chart import FOLDER, objects, rendered

Object = dict[str, Any]
EXPECTED = Expectations(
    ("nvidia.com/gpu",),
    gpu_optional=True,
    kuberay_labels={"app.kubernetes.io/name": "kuberay-operator"},
    kueue_required=True,
    namespace="research",
    inputs_name="cloister-readiness-inputs",
    job_name="cloister-readiness",
)
TERMINATED = {"message": TerminationMessage(outcome=Outcome.SUCCEEDED).encode(), "exitCode": 0}


class Queue(Cluster):
    """The API with a Kueue that suspends a Job when it is made, and admits it after so many looks at its pods."""

    def __init__(self, admits_after: int | None, *, suspends: bool = True) -> None:
        self._admits_after, self._suspends = admits_after, suspends
        self._looks = 0
        self._made: Object | None = None

    @property
    def _admitted(self) -> bool:
        return self._admits_after is not None and self._looks >= self._admits_after

    async def create(self, rendered: Object) -> Object:
        self._made = rendered
        return rendered

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        if self._made is None or kind != self._made["kind"]:
            return None
        return self._made | {"spec": {"suspend": self._suspends and not self._admitted}}

    async def list(self, kind: str, namespace: str | None, **selectors: str) -> Listing:
        self._looks += 1
        ended = {"status": {"containerStatuses": [{"state": {"terminated": TERMINATED}}]}}
        return Listing([ended] if self._admitted else [], 1)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "POLL_S", 0.01)


def plan(timeout_s: float, patience_s: float) -> Plan:
    manifest = {"kind": "Job", "metadata": {"namespace": "research", "name": "cloister-readiness-inputs"}}
    job = {"kind": "FineTuneJob", "metadata": {"namespace": "research", "name": "cloister-readiness"}}
    return Plan(manifest, job, (), "kueue-system", timeout_s, patience_s, EXPECTED)


def inputs(cluster: Cluster, timeout_s: float, patience_s: float) -> InputsFound:
    async def run() -> InputsFound:
        found = plan(timeout_s, patience_s)
        return await gather.run_inputs(cluster, found, asyncio.get_running_loop().time() + timeout_s)

    return asyncio.run(run())


def test_a_job_that_is_queued_outlasts_the_patience_for_a_pod() -> None:
    assert inputs(Queue(admits_after=20), timeout_s=60, patience_s=0.05) == InputsFound(ended=True)


def test_a_job_that_is_never_admitted_ends_with_the_test() -> None:
    found = inputs(Queue(admits_after=None), timeout_s=0.1, patience_s=0.05)
    assert (found.ended, found.reason) == (False, "Queued")


def test_a_job_that_is_not_queued_and_gets_no_pod_ends_with_the_patience() -> None:
    found = inputs(Queue(admits_after=None, suspends=False), timeout_s=60, patience_s=0.05)
    assert (found.ended, found.reason) == (False, "NoPod")


def test_the_job_has_only_the_time_that_its_inputs_left() -> None:
    async def run() -> JobFound:
        now = asyncio.get_running_loop().time()
        return await gather.run_job(Queue(None), plan(timeout_s=60, patience_s=60), now, lambda line: None)

    assert asyncio.run(asyncio.wait_for(run(), 5)) == JobFound(phase="Pending")


def test_the_queue_is_named_where_kueue_looks_for_it() -> None:
    (text,) = [
        each["data"]["plan.json"] for each in objects(rendered(FOLDER / "kueue")) if "plan.json" in each.get("data", {})
    ]
    inputs_job = json.loads(text)["inputs"]
    assert inputs_job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "cpu"
    assert "kueue.x-k8s.io/queue-name" not in inputs_job["spec"]["template"]["metadata"]["labels"]


class Left(Queue):
    """The API with what an earlier test left, which goes after so many deletions, or never."""

    def __init__(self, goes_after: int | None) -> None:
        super().__init__(admits_after=0)
        self._goes_after = goes_after
        self.deletions = 0

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        if self._made is None and (self._goes_after is None or self.deletions < self._goes_after):
            return {"metadata": {"uid": "left"}}
        return await super().get(kind, namespace, name)

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        assert uid == "left"
        self.deletions += 1


def test_what_an_earlier_test_left_is_waited_for() -> None:
    assert inputs(Left(goes_after=3), timeout_s=60, patience_s=60) == InputsFound(ended=True)


@pytest.mark.parametrize(("timeout_s", "patience_s"), [(0.05, 60), (60, 0.05)], ids=["the test's time", "the patience"])
def test_what_an_earlier_test_left_and_never_goes_ends_the_wait_with_a_sentence(
    timeout_s: float, patience_s: float
) -> None:
    found = inputs(Left(goes_after=None), timeout_s, patience_s)
    assert (found.ended, found.reason) == (False, Obstacle.STILL_THERE)
    assert (
        found.message == "the Job cloister-readiness-inputs that an earlier test left was deleted, and is still there"
    )

    async def run() -> JobFound:
        deadline = asyncio.get_running_loop().time() + timeout_s
        return await gather.run_job(Left(None), plan(timeout_s, patience_s), deadline, lambda line: None)

    job = asyncio.run(asyncio.wait_for(run(), 5))
    assert (job.phase, job.reason) == ("", Obstacle.STILL_THERE)
    assert "FineTuneJob cloister-readiness" in job.message


@pytest.mark.parametrize(
    ("status", "obstacle"),
    [(403, Obstacle.REFUSED), (422, Obstacle.REFUSED), (409, Obstacle.REFUSED), (404, Obstacle.NOT_SERVED)],
)
def test_an_object_that_is_not_let_in_is_a_line_of_the_table(status: int, obstacle: Obstacle) -> None:
    class Refusing(Queue):
        async def create(self, rendered: Object) -> Object:
            raise ClusterError(status, f"post /jobs: {status} no more Jobs here")

    found = inputs(Refusing(0), timeout_s=60, patience_s=60)
    assert (found.ended, found.reason) == (False, obstacle)
    assert obstacle is Obstacle.NOT_SERVED or "no more Jobs here" in found.message


class Pods(Queue):
    """The API with one pod of the Job, in a given state."""

    def __init__(self, status: Object) -> None:
        super().__init__(admits_after=0)
        self._status = status

    async def list(self, kind: str, namespace: str | None, **selectors: str) -> Listing:
        return Listing([{"status": self._status}], 1)


GATE = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "Scheduling is blocked"}


def test_a_pod_that_is_gated_waits_for_its_queue_as_long_as_the_test() -> None:
    """Kueue does not suspend what it queues by its pods: it closes their scheduling gates."""
    gated = Pods({"phase": "Pending", "conditions": [GATE]})
    start = time.monotonic()
    found = inputs(gated, timeout_s=0.3, patience_s=0.02)
    assert (found.ended, found.reason) == (False, Obstacle.QUEUED)
    assert time.monotonic() - start >= 0.3


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory."}, "Evicted"),
        ({"phase": "Failed"}, Obstacle.NOT_STARTED),
        ({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "X"}}}]}, Obstacle.NOT_STARTED),
        ({"phase": "Running", "containerStatuses": [{"state": {"running": {"startedAt": "t"}}}]}, Obstacle.NOT_ENDED),
    ],
    ids=["evicted", "failed as a whole", "still pulling", "still running"],
)
def test_how_far_a_pod_came_is_told(status: Object, reason: str) -> None:
    assert inputs(Pods(status), timeout_s=0.05, patience_s=60).reason == reason


class Installed(Cluster):
    """The API of a cluster with Deployments, nodes and Kueue's configuration."""

    def __init__(self, items: list[Object] | None = None, data: Object | None = None) -> None:
        self._items, self._data = items or [], data

    async def list(self, kind: str, namespace: str | None, **selectors: str) -> Listing:
        return Listing(self._items, 1)

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        return None if self._data is None else {"data": self._data}


def deployment(name: str, available: int, labels: Object) -> Object:
    container = {"image": f"{name}:v1.6.0"}
    return {
        "metadata": {"labels": {"helm.sh/chart": f"{name}-1.6.0"}},
        "spec": {"template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}}},
        "status": {"availableReplicas": available} if available else {},
    }


def test_kuberay_is_known_by_the_labels_of_its_pods() -> None:
    own = {"app.kubernetes.io/name": "kuberay-operator", "pod-template-hash": "1"}
    cluster = Installed([deployment("kuberay", 1, own), deployment("idle", 0, own), deployment("other", 1, {"a": "b"})])
    assert asyncio.run(gather._kuberay(cluster, EXPECTED.kuberay_labels)) == (
        KubeRayFound("kuberay:v1.6.0", "kuberay-1.6.0", available=True),
        KubeRayFound("idle:v1.6.0", "idle-1.6.0", available=False),
    )


@pytest.mark.parametrize(
    ("data", "frameworks"),
    [
        (None, None),
        ({"notes": "a: [", "config.yaml": "kind: Other"}, None),
        ({"config.yaml": "kind: Configuration\nintegrations: {frameworks: [batch/job]}"}, {"batch/job"}),
        ({"config.yaml": "kind: Other\n---\nkind: Configuration\nintegrations:\n"}, set()),
    ],
    ids=["no ConfigMap", "no Configuration", "frameworks", "no integrations"],
)
def test_kueues_frameworks_are_read_from_whatever_its_config_map_holds(
    data: Object | None, frameworks: set[str] | None
) -> None:
    assert asyncio.run(gather._kueue_frameworks(Installed(data=data), "kueue-system")) == frameworks


def test_gpus_are_counted_as_kubernetes_writes_them() -> None:
    nodes = [{"status": {"allocatable": {"nvidia.com/gpu": number}}} for number in ("8", "1k")] + [{"status": {}}]
    assert asyncio.run(gather._gpus(Installed(nodes), ("nvidia.com/gpu",))) == {"nvidia.com/gpu": 1008}
