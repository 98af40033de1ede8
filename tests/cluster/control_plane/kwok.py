"""Nodes without machines: kwok keeps them Ready, the real scheduler binds pods to them, and pods stay as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping

from cluster.control_plane.access import Cluster, wait_until
from cluster.control_plane.api import Object
from cluster.control_plane.binaries import program
from cluster.control_plane.plane import HOST, ControlPlane
from support.child_process import Program
from support.seaweedfs import free_ports

ANNOTATION = "kwok.x-k8s.io/node"
GPU_NODE = {"cpu": "64", "memory": "512Gi", "ephemeral-storage": "2Ti", "pods": "250", "nvidia.com/gpu": "8"}
NO_POD_STAGE = {
    "apiVersion": "kwok.x-k8s.io/v1alpha1",
    "kind": "Stage",
    "metadata": {"name": "no-pod"},
    "spec": {
        "resourceRef": {"apiGroup": "v1", "kind": "Pod"},
        "selector": {"matchLabels": {"kwok.x-k8s.io/never": "true"}},
        "next": {"statusTemplate": ""},
    },
}
"""Replaces kwok's own stages for pods by one that matches none: pod status is for whoever plays the kubelet."""


def start_kwok(plane: ControlPlane, kubelet_port: int) -> Program:
    """Start kwok for the nodes that `create_node` makes; the API server asks `kubelet_port` for their pods' logs."""
    (port,) = free_ports(1)
    stages = plane.folder / "kwok.yaml"
    stages.write_text(json.dumps(NO_POD_STAGE))
    command = [
        str(program("kwok")), f"--kubeconfig={plane.kubeconfig}", f"--config={stages}", "--manage-all-nodes=false",
        f"--manage-nodes-with-annotation-selector={ANNOTATION}=fake", f"--node-ip={HOST}", "--cidr=10.245.0.0/24",
        f"--node-port={kubelet_port}", f"--server-address={HOST}:{port}", "--node-lease-duration-seconds=40",
    ]  # fmt: skip
    started = plane.run("kwok", command, plane.environment())
    plane.wait_for_port(started, f"http://{HOST}:{port}/healthz")
    return started


def create_node(cluster: Cluster, name: str, resources: Mapping[str, str] = GPU_NODE) -> None:
    """A node with these resources, Ready when this returns; pods without a toleration may use it."""
    node: Object = {
        "metadata": {
            "name": name,
            "annotations": {ANNOTATION: "fake"},
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"},
        },
        "status": {"allocatable": dict(resources), "capacity": dict(resources)},
    }
    cluster.api.create("/api/v1/nodes", node)
    wait_until(lambda: _is_ready(cluster.api.get(f"/api/v1/nodes/{name}")), f"node {name}")


def delete_node(cluster: Cluster, name: str) -> None:
    """The node is gone, as one that was taken out of a cluster."""
    cluster.api.delete(f"/api/v1/nodes/{name}")


def _is_ready(node: Object) -> bool:
    conditions = node["status"].get("conditions") or []
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    return ready and not node["spec"].get("taints")  # the not-ready taint goes a moment later
