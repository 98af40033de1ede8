"""One run, and what happens to it: processes, pods and nodes' agents die, and it goes on from its newest checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from cluster.control_plane.access import wait_until
from e2e.installation import NAMESPACE, Installation
from e2e.jobs import FineTune, long_job

pytestmark = pytest.mark.timeout(900)
STEPS = 900
KILL_RANK = """\
for each in /proc/[0-9]*; do
  if grep -qs '^ray::RayTrainWorker' $each/cmdline; then kill -9 ${each#/proc/}; fi
done
"""
RETURN_S = 240.0


@pytest.fixture(scope="module")
def run(installation: Installation) -> FineTune:
    """A job that trains, with two workers and a checkpoint every few seconds."""
    job = FineTune.apply(installation.cluster, long_job(installation.tenants[0], "long", STEPS))
    job.wait_for("Training")
    return job


@dataclass(frozen=True)
class Before:
    """What was known of the run before something happened to it."""

    checkpoint: int
    starts: tuple[tuple[str, int], ...]


@pytest.fixture
def before(run: FineTune) -> Before:
    """The run makes checkpoints again since the last fault; these are known."""
    return Before(run.wait_for_newer_checkpoint(RETURN_S), run.starts())


def test_a_killed_rank_starts_again_inside_the_attempt(run: FineTune, before: Before) -> None:
    (worker, _) = run.running_pods("worker")
    run.cluster.kubectl("exec", worker, "--", "bash", "-c", KILL_RANK, namespace=run.namespace)
    goes_on(run, before)
    assert run.status["attempt"] == 1
    assert run.running_pods("worker").count(worker) == 1, "the pod stays"


def test_a_deleted_worker_pod_is_replaced(run: FineTune, before: Before) -> None:
    (worker, _) = run.running_pods("worker")
    run.cluster.kubectl("delete", "pod", worker, "--wait=false", namespace=run.namespace)
    goes_on(run, before)
    assert run.status["attempt"] == 1
    assert worker not in run.running_pods("worker")


def test_a_new_operator_goes_on_where_the_last_one_was(run: FineTune, before: Before) -> None:
    operator = operator_pods(run)
    run.cluster.kubectl("delete", "pod", *operator, namespace=NAMESPACE)
    assert run.wait_for_newer_checkpoint(RETURN_S) > before.checkpoint
    assert not set(operator) & set(operator_pods(run))
    assert (run.phase, run.status["attempt"]) == ("Training", 1)
    assert run.starts() == before.starts, "the run did not notice"


def test_a_lost_head_is_replaced(run: FineTune, before: Before) -> None:
    """Mostly inside the attempt. Where the submitter takes the head's farewell for the run's end, KubeRay gives the
    RayJob up, and the next attempt goes on; that counts as no failure."""
    run.cluster.kubectl("delete", "pod", *run.running_pods("head"), "--wait=false", namespace=run.namespace)
    run.wait(lambda: run.status["attempts"][0].get("restarts") == 1, "the restart to be counted", RETURN_S)
    goes_on(run, before)
    status = run.status
    assert status["attempt"] in (1, 2)
    assert status.get("retries", 0) == 0


def test_a_suspended_job_frees_its_pods_and_goes_on_in_a_new_attempt(run: FineTune, before: Before) -> None:
    attempt = run.status["attempt"]
    run.patch({"suspend": True})
    run.wait_for("Suspended")
    wait_until(lambda: not any(map(run.pods, ("head", "worker", "submitter"))), "its pods to end", RETURN_S)
    run.patch({"suspend": False})
    run.wait_for("Training")
    goes_on(run, before)
    assert run.status["attempt"] == attempt + 1


def test_after_all_that_it_is_complete(run: FineTune) -> None:
    status = run.wait_for("Complete")
    assert status["progress"]["step"] == STEPS
    assert [each["reason"] for each in status["attempts"]][-2:] == ["Suspended", "Complete"]
    assert "failure" not in status
    assert status["output"]["adapterDigest"]
    told = " ".join(run.events())
    assert "Suspended" in told and "Complete" in told


def goes_on(run: FineTune, before: Before) -> None:
    """Wait until ranks started again, and see that they went on from that checkpoint or a later one."""
    while not (new := [start for start in run.starts() if start not in before.starts]):
        run.wait_for_newer_checkpoint(RETURN_S)
    assert new[-1][1] > before.checkpoint


def operator_pods(run: FineTune) -> list[str]:
    path = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io/name=cloister-operator"
    return [pod["metadata"]["name"] for pod in run.cluster.api.get(path)["items"]]
