"""One run, and what happens to it: processes, pods and nodes' agents die, and it goes on from its newest checkpoint."""

from __future__ import annotations

import pytest

from cluster.control_plane.access import wait_until
from e2e.installation import NAMESPACE, Installation
from e2e.jobs import FineTune, long_job

pytestmark = pytest.mark.timeout(900)
STEPS = 900
KILL_RANK = "for each in /proc/[0-9]*; do grep -qs RayTrainWorker $each/cmdline && kill -9 ${each#/proc/}; done; true"
RETURN_S = 240.0


@pytest.fixture(scope="module")
def run(installation: Installation) -> FineTune:
    """A job that trains, with two workers and a checkpoint every few seconds."""
    job = FineTune.apply(installation.cluster, long_job(installation.tenants[0], "long", STEPS))
    job.wait_for("Training")
    return job


@pytest.fixture
def checkpoint(run: FineTune) -> int:
    """Step of a checkpoint that the run made since the last fault: it trains again."""
    return run.wait_for_newer_checkpoint(RETURN_S)


def test_a_killed_rank_starts_again_inside_the_attempt(
    run: FineTune, checkpoint: int, installation: Installation
) -> None:
    (worker, _) = run.running_pods("worker")
    run.cluster.kubectl("exec", worker, "--", "bash", "-c", KILL_RANK, namespace=run.namespace)
    resumed(run, checkpoint, installation)
    assert run.status["attempt"] == 1
    assert run.running_pods("worker").count(worker) == 1, "the pod stays"


def test_a_deleted_worker_pod_is_replaced(run: FineTune, checkpoint: int, installation: Installation) -> None:
    (worker, _) = run.running_pods("worker")
    run.cluster.kubectl("delete", "pod", worker, "--wait=false", namespace=run.namespace)
    resumed(run, checkpoint, installation)
    assert run.status["attempt"] == 1
    assert worker not in run.running_pods("worker")


def test_a_new_operator_goes_on_where_the_last_one_was(run: FineTune, checkpoint: int) -> None:
    operator = operator_pods(run)
    run.cluster.kubectl("delete", "pod", *operator, namespace=NAMESPACE)
    assert run.wait_for_newer_checkpoint(RETURN_S) > checkpoint
    assert not set(operator) & set(operator_pods(run))
    assert (run.phase, run.status["attempt"]) == ("Training", 1)


def test_a_lost_head_is_replaced_inside_the_attempt(run: FineTune, checkpoint: int, installation: Installation) -> None:
    run.cluster.kubectl("delete", "pod", *run.running_pods("head"), "--wait=false", namespace=run.namespace)
    resumed(run, checkpoint, installation)
    (attempt,) = run.status["attempts"]
    assert attempt["restarts"] == 1


def test_a_suspended_job_frees_its_pods_and_goes_on_in_a_new_attempt(
    run: FineTune, checkpoint: int, installation: Installation
) -> None:
    run.patch({"suspend": True})
    run.wait_for("Suspended")
    wait_until(lambda: not any(map(run.pods, ("head", "worker", "submitter"))), "its pods to end", RETURN_S)
    kept = run.checkpoint
    assert kept >= checkpoint
    run.patch({"suspend": False})
    run.wait_for("Training")
    resumed(run, kept, installation)
    assert run.status["attempt"] == 2


def test_after_all_that_it_is_complete(run: FineTune) -> None:
    status = run.wait_for("Complete")
    assert status["progress"]["step"] == STEPS
    assert [each["reason"] for each in status["attempts"]] == ["Suspended", "Complete"]
    assert "failure" not in status
    assert status["output"]["adapterDigest"]


def resumed(run: FineTune, checkpoint: int, installation: Installation) -> None:
    """Wait until ranks went on from this checkpoint or a later one: each start writes metrics of its own."""
    prefix = f"{run.namespace}/{run.read()['metadata']['uid']}/metrics/from-"

    def starts() -> list[int]:
        names = installation.keys("cloister-runs", prefix)
        return [int(name.removeprefix(prefix).partition(".")[0]) for name in names]

    while max(starts()) <= checkpoint:
        run.wait_for_newer_checkpoint(RETURN_S)


def operator_pods(run: FineTune) -> list[str]:
    path = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io/component=operator"
    return [pod["metadata"]["name"] for pod in run.cluster.api.get(path)["items"]]
