"""Small RayJobs and pods for a cluster without kubelets: nothing in them ever runs."""

from __future__ import annotations

from typing import Any

from cluster.control_plane.access import Cluster

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
RAY = "/apis/ray.io/v1"


def pod_spec(name: str, resources: dict[str, str] | None = None) -> dict[str, Any]:
    """A pod of one container that Pod Security `restricted` allows."""
    container = {"name": name, "image": "localhost/never:1", "securityContext": RESTRICTED}
    return {"containers": [container | {"resources": {"limits": resources or {"cpu": "1"}}}]}


def create_pod(cluster: Cluster, namespace: str, name: str, resources: dict[str, str] | None = None) -> None:
    """A pod alone."""
    pod = {"metadata": {"name": name}, "spec": pod_spec("main", resources)}
    cluster.api.create(f"/api/v1/namespaces/{namespace}/pods", pod)


def create_batch_job(
    cluster: Cluster, namespace: str, name: str, labels: dict[str, str] | None = None, *, suspend: bool = False
) -> None:
    """A plain Job of one pod."""
    template = {"spec": pod_spec("main") | {"restartPolicy": "Never"}}
    job = {"metadata": {"name": name, "labels": labels or {}}, "spec": {"template": template, "suspend": suspend}}
    cluster.api.create(f"/apis/batch/v1/namespaces/{namespace}/jobs", job)


def create_ray_job(
    cluster: Cluster,
    namespace: str,
    name: str,
    *,
    gpus: int = 1,
    labels: dict[str, str] | None = None,
    managed_by: str | None = None,
) -> None:
    """A RayJob with a head and one worker that asks for GPUs. KubeRay leaves it alone where another manages it."""
    resources = {"cpu": "1", "nvidia.com/gpu": str(gpus)}
    head = {"rayStartParams": {}, "template": {"spec": pod_spec("ray-head")}}
    worker = {
        "groupName": "w",
        "replicas": 1,
        "minReplicas": 1,
        "maxReplicas": 1,
        "rayStartParams": {},
        "template": {"spec": pod_spec("ray-worker", resources)},
    }
    ray_cluster = {"rayVersion": "2.60.0", "headGroupSpec": head, "workerGroupSpecs": [worker]}
    spec = {"entrypoint": "python -c 1", "shutdownAfterJobFinishes": True, "rayClusterSpec": ray_cluster}
    managed = {"managedBy": managed_by} if managed_by else {}
    submitter = {"spec": pod_spec("ray-job-submitter") | {"restartPolicy": "Never"}}
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": spec | managed | {"submitterPodTemplate": submitter},
    }
    cluster.api.create(f"{RAY}/namespaces/{namespace}/rayjobs", job)
