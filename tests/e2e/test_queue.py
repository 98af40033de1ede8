"""Kueue: a queue with room for one job, and a more urgent one that takes its place for a while."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.control_plane.access import wait_until
from cluster.control_plane.kueue import create_queue
from e2e.installation import Installation
from e2e.jobs import FineTune, long_job, tiny_job

pytestmark = [pytest.mark.timeout(1200), pytest.mark.full]
QUEUE = "research"
ROOM = {"cpu": "250m", "memory": "200Gi"}
"""Each container asks for 50m: a head, two workers and a submitter fit, and no second job beside them."""
URGENT = "urgent"
LABELS = "metadata.labels"
QUEUED = {"kueue.x-k8s.io/queue-name": QUEUE}
SELDOM = {"spec.checkpoint.interval": "1h"}
STEPS = 400


@pytest.fixture(scope="module")
def tenant(installation: Installation) -> Iterator[str]:
    """A tenant with the queue, and a priority class."""
    name = installation.tenants[1]
    create_queue(installation.cluster, name, ROOM, name=QUEUE, preempts=True)
    urgent = {
        "apiVersion": "kueue.x-k8s.io/v1beta1",
        "kind": "WorkloadPriorityClass",
        "metadata": {"name": URGENT},
        "value": 1000,
    }
    installation.cluster.api.create("/apis/kueue.x-k8s.io/v1beta1/workloadpriorityclasses", urgent)
    yield name
    installation.cluster.api.delete(f"/apis/kueue.x-k8s.io/v1beta1/workloadpriorityclasses/{URGENT}")


def test_a_second_job_waits_and_an_urgent_one_goes_first(installation: Installation, tenant: str) -> None:
    cluster = installation.cluster
    first = FineTune.apply(cluster, long_job(tenant, "first", STEPS, {LABELS: QUEUED, **SELDOM}))
    first.wait(lambda: first.step >= 20, "some steps")
    second = FineTune.apply(cluster, tiny_job(tenant, "second", {LABELS: QUEUED}))
    second.wait(lambda: second.status.get("reason") == "Queued", "the second job to be queued")
    second.wait(lambda: second.condition("QuotaReserved")[0] == "False", "its condition to say so")
    seen = first.step

    urgent = {"kueue.x-k8s.io/priority-class": URGENT}
    third = FineTune.apply(cluster, tiny_job(tenant, "third", {LABELS: {**QUEUED, **urgent}}))
    first.wait(lambda: first.condition("QuotaReserved")[0] == "False", "the first job to be evicted")
    third.wait_for("Complete")

    status = first.wait_for("Complete")
    (attempt,) = status["attempts"]
    assert attempt["restarts"] >= 1
    prefix = f"{tenant}/{first.read()['metadata']['uid']}/metrics/from-"
    parts = [key.removeprefix(prefix) for key in installation.keys("cloister-runs", prefix)]
    resumed = [int(part.partition(".")[0]) for part in parts if not part.startswith("000001.")]
    assert len(resumed) == 1, "one checkpoint before the end: the interval is an hour, so the eviction stored it"
    assert resumed[0] > seen
    wait_until(lambda: second.phase == "Complete", "the second job", 600.0)
