"""The operator as a process of its own, with the rights that it ships and no others."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from cloister_api.yaml_tree import read_documents
from cluster.control_plane.plane import ControlPlane
from support.child_process import Program
from support.operator_world import SETTINGS_YAML
from support.seaweedfs import free_ports

ROOT = Path(__file__).resolve().parents[2]
ACCOUNT = "cloister-operator"
RBAC = "/apis/rbac.authorization.k8s.io/v1"


def install_role(plane: ControlPlane, namespace: str) -> None:
    """The ServiceAccount in `namespace`, bound to exactly the ClusterRole that the operator ships."""
    (role,) = read_documents((ROOT / "operator/manifests/cluster-role.yaml").read_text())
    plane.api.apply(f"{RBAC}/clusterroles/{ACCOUNT}", role.value, "tests")
    plane.api.create(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": ACCOUNT}})
    binding: dict[str, Any] = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": f"{ACCOUNT}-{namespace}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ACCOUNT},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}],
    }
    plane.api.create(f"{RBAC}/clusterrolebindings", binding)


def operator(plane: ControlPlane, namespace: str, folder: Path, settings_yaml: str = SETTINGS_YAML) -> Program:
    """The operator for all namespaces, not started; `namespace` holds its ServiceAccount."""
    install_role(plane, namespace)
    settings = folder / "settings.yaml"
    settings.write_text(settings_yaml)
    control, canary, metrics, health = free_ports(4)
    kubeconfig = plane.service_account_kubeconfig(namespace, ACCOUNT, folder)
    ports = {"control": control, "canary": canary, "metrics": metrics, "health": health}
    arguments = [f"--{name}-port={port}" for name, port in ports.items()]
    environment = {**plane.environment(), "KUBECONFIG": str(kubeconfig), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    command = [sys.executable, "-m", "cloister_operator", "--settings", str(settings), "--verbose", *arguments]
    return Program("cloister-operator", command, folder, environment)
