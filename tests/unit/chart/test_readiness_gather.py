"""`helm test` waits for what is queued, for as long as the whole test may take and no longer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from cloister_api.termination import Outcome, TerminationMessage
from cloister_operator.cluster import Cluster, Listing
from cloister_operator.readiness import gather
from cloister_operator.readiness.facts import Expectations, InputsFound, JobFound
from cloister_operator.readiness.plan import Plan
from support.chart import FOLDER, objects, rendered

Object = dict[str, Any]
EXPECTED = Expectations(
    ("nvidia.com/gpu",),
    gpu_optional=True,
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
    assert "settings.auxiliaryQueueName" in found.message


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
