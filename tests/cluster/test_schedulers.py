"""The real scheduler, KubeRay and Kueue, up to the pods: what they make, hold back and say."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cluster.control_plane.access import wait_until
from cluster.control_plane.kueue import create_queue
from cluster.control_plane.plane import ControlPlane
from cluster.ray_jobs import RAY, create_batch_job, create_pod, create_ray_job
from support.child_process import Program

KUEUE = "/apis/kueue.x-k8s.io/v1beta1"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
QUOTA = {"cpu": 8, "memory": "64Gi", "nvidia.com/gpu": 8}

pytestmark = pytest.mark.usefixtures("gpu_nodes")


def condition(thing: dict[str, Any], kind: str) -> dict[str, Any]:
    conditions = thing.get("status", {}).get("conditions") or []
    return next((each for each in conditions if each["type"] == kind), {})


def items(plane: ControlPlane, path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = plane.api.get(path)["items"]
    return found


def ray_job(plane: ControlPlane, namespace: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = plane.api.get(f"{RAY}/namespaces/{namespace}/rayjobs/{name}")
    return found


def test_a_pod_with_gpus_is_bound_to_a_node(control_plane: ControlPlane, namespace: str) -> None:
    create_pod(control_plane, namespace, "fits", {"nvidia.com/gpu": "8"})
    path = f"/api/v1/namespaces/{namespace}/pods/fits"
    node = wait_until(lambda: control_plane.api.get(path)["spec"].get("nodeName"), "the scheduler")
    assert node in ("gpu-0", "gpu-1")


def test_a_pod_that_fits_nowhere_says_what_is_missing(control_plane: ControlPlane, namespace: str) -> None:
    create_pod(control_plane, namespace, "large", {"nvidia.com/gpu": "9"})
    path = f"/api/v1/namespaces/{namespace}/pods/large"
    waiting = wait_until(lambda: condition(control_plane.api.get(path), "PodScheduled"), "the scheduler")
    assert (waiting["status"], waiting["reason"]) == ("False", "Unschedulable")
    assert "2 Insufficient nvidia.com/gpu" in waiting["message"]


def test_kuberay_makes_a_head_and_a_worker(control_plane: ControlPlane, kuberay: Program, namespace: str) -> None:
    create_ray_job(control_plane, namespace, "x")
    pods = f"/api/v1/namespaces/{namespace}/pods"
    wait_until(lambda: len(items(control_plane, pods)) == 2, "KubeRay's pods")
    kinds = {pod["metadata"]["labels"]["ray.io/node-type"] for pod in items(control_plane, pods)}
    assert kinds == {"head", "worker"}
    wait_until(lambda: all(pod["spec"].get("nodeName") for pod in items(control_plane, pods)), "the scheduler")
    status = ray_job(control_plane, namespace, "x")["status"]
    assert status["jobDeploymentStatus"] == "Initializing"


def test_kuberay_s_finalizer_goes_with_the_job(control_plane: ControlPlane, kuberay: Program, namespace: str) -> None:
    create_ray_job(control_plane, namespace, "x")
    path = f"{RAY}/namespaces/{namespace}/rayjobs/x"
    wait_until(lambda: control_plane.api.get(path)["metadata"].get("finalizers"), "KubeRay")
    control_plane.api.delete(path)
    wait_until(lambda: not control_plane.api.exists(path), "KubeRay's clean-up")


def test_kueue_admits_a_ray_job_within_the_quota(control_plane: ControlPlane, kueue: Program, namespace: str) -> None:
    create_queue(control_plane, namespace, QUOTA)
    create_ray_job(control_plane, namespace, "x", gpus=8, labels={QUEUE_LABEL: "research"})
    workload = wait_until(lambda: admitted_workload(control_plane, namespace), "Kueue")
    sets = {each["name"] for each in workload["spec"]["podSets"]}
    assert sets == {"head", "w", "submitter"}
    clusters = f"{RAY}/namespaces/{namespace}/rayclusters"
    wait_until(lambda: items(control_plane, clusters), "KubeRay")


def test_kueue_holds_a_ray_job_over_the_quota_and_says_why(
    control_plane: ControlPlane, kueue: Program, namespace: str
) -> None:
    create_queue(control_plane, namespace, QUOTA)
    create_ray_job(control_plane, namespace, "x", gpus=9, labels={QUEUE_LABEL: "research"})
    assert ray_job(control_plane, namespace, "x")["spec"]["suspend"] is True
    held = wait_until(lambda: held_sentence(control_plane, namespace), "Kueue")
    assert "nvidia.com/gpu" in held
    assert items(control_plane, f"{RAY}/namespaces/{namespace}/rayclusters") == []


def test_a_queue_named_default_takes_plain_jobs_too(
    control_plane: ControlPlane, kueue: Program, namespace: str
) -> None:
    jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    create_batch_job(control_plane, namespace, "before")
    assert control_plane.api.get(f"{jobs}/before")["spec"]["suspend"] is False
    create_queue(control_plane, namespace, {"cpu": 0, "memory": 0}, name="default")
    path = f"{KUEUE}/namespaces/{namespace}/localqueues/default"
    wait_until(lambda: condition(control_plane.api.get(path), "Active").get("status") == "True", "the queue")
    wait_until(lambda: is_held(control_plane, namespace), "Kueue to know its queue")


def admitted_workload(plane: ControlPlane, namespace: str) -> dict[str, Any] | None:
    workloads = items(plane, f"{KUEUE}/namespaces/{namespace}/workloads")
    return next((each for each in workloads if condition(each, "Admitted").get("status") == "True"), None)


def held_sentence(plane: ControlPlane, namespace: str) -> str:
    for workload in items(plane, f"{KUEUE}/namespaces/{namespace}/workloads"):
        found = condition(workload, "QuotaReserved")
        if found.get("status") == "False":
            return str(found["message"])
    return ""


def is_held(plane: ControlPlane, namespace: str) -> bool:
    """Whether a new Job without any label waits for quota; each call makes one."""
    create_batch_job(plane, namespace, f"held-{time.monotonic_ns()}")
    return bool(held_sentence(plane, namespace))
