"""One run while what it stands on is away: KubeRay, the object store, the kubelet. Then it is deleted."""

from __future__ import annotations

import time

import pytest

from cluster.control_plane.access import wait_until
from cluster.control_plane.kuberay import NAMESPACE as KUBERAY_NAMESPACE
from e2e.cluster.node import Node
from e2e.installation import NAMESPACE, Installation
from e2e.jobs import FineTune, long_job

pytestmark = [pytest.mark.timeout(900), pytest.mark.full]
ENDLESS = 1_000_000
STORE_AWAY_S = 30.0


@pytest.fixture(scope="module")
def run(installation: Installation) -> FineTune:
    """A job that trains until it is deleted, with a checkpoint every few seconds."""
    job = FineTune.apply(installation.cluster, long_job(installation.tenants[0], "endless", ENDLESS))
    job.wait_for("Training")
    return job


@pytest.fixture(autouse=True)
def trains(run: FineTune) -> None:
    """It makes checkpoints before each of these tests."""
    run.wait_for_newer_checkpoint()


def test_a_new_kuberay_leaves_the_run_alone(run: FineTune) -> None:
    pods = pods_of(run)
    selector = ("--selector", "app.kubernetes.io/name=kuberay-operator")
    run.cluster.kubectl("delete", "pod", *selector, namespace=KUBERAY_NAMESPACE)
    run.wait_for_newer_checkpoint()
    assert pods_of(run) == pods
    assert restarts(run) == [0]


def test_it_waits_for_a_store_that_is_away(run: FineTune) -> None:
    before = run.checkpoint
    scale = ("scale", "statefulset/cloister-store", "--replicas")
    run.cluster.kubectl(*scale, "0", namespace=NAMESPACE)
    try:
        pod = ("wait", "--for=delete", "pod/cloister-store-0", "--timeout=120s")
        run.cluster.kubectl(*pod, namespace=NAMESPACE)
        time.sleep(STORE_AWAY_S)
    finally:
        run.cluster.kubectl(*scale, "1", namespace=NAMESPACE)
    assert run.wait_for_newer_checkpoint() > before
    assert restarts(run) == [0]


def test_a_restarted_kubelet_leaves_its_pods_alone(node: Node, run: FineTune) -> None:
    pods = pods_of(run)
    node.program("kubelet").kill()
    node.program("kubelet").start()
    run.wait_for_newer_checkpoint()
    assert pods_of(run) == pods
    assert restarts(run) == [0]


def test_a_deleted_job_takes_everything_of_its_own_with_it(run: FineTune, installation: Installation) -> None:
    uid = run.read()["metadata"]["uid"]
    run.delete()
    wait_until(lambda: not left_of(run), "its objects to go", 180.0)
    assert installation.keys("cloister-runs", f"{run.namespace}/{uid}/checkpoints/"), "stored files stay"


def pods_of(run: FineTune) -> set[str]:
    """UIDs of the pods that train."""
    return {pod["metadata"]["uid"] for role in ("head", "worker") for pod in run.pods(role)}


def restarts(run: FineTune) -> list[int]:
    """How often each attempt started again."""
    return [each.get("restarts", 0) for each in run.status["attempts"]]


def left_of(run: FineTune) -> str:
    """Objects of the job that are still there."""
    kinds = "pods,jobs,rayjobs,rayclusters,configmaps,networkpolicies,services"
    return run.cluster.kubectl(
        "get", kinds, "--selector", f"cloister.dev/job={run.name}", "--output=name", namespace=run.namespace
    )
