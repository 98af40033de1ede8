"""The operator as a process of its own, with the rights that it ships and no others."""

from __future__ import annotations

import json
import os
import re
import sys
import urllib.request
from pathlib import Path
from typing import Any

from cloister_api.yaml_tree import read_documents
from cluster.control_plane.access import write_kubeconfig
from cluster.control_plane.api import Object
from cluster.control_plane.plane import HOST, ControlPlane
from support.child_process import Program
from support.operator_values import SETTINGS_YAML
from support.seaweedfs import free_ports

ROOT = Path(__file__).resolve().parents[2]
ACCOUNT = "cloister-operator"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
SAMPLE = re.compile(r"(?P<name>[a-z_]+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
LABEL = re.compile(r'([a-zA-Z_]+)="([^"]*)"')


class OperatorProcess(Program):
    """The operator with its ports, and what it says of itself."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str], ports: dict[str, int]) -> None:
        super().__init__("cloister-operator", command, folder, environment)
        self._ports = ports

    def crash(self) -> None:
        """SIGKILL, from any thread, without waiting for the end; `start` begins a new process."""
        if (process := self._process) is not None:
            process.kill()

    def end_gracefully(self, timeout_s: float) -> int:
        """SIGTERM; the exit code. TimeoutExpired."""
        assert self._process is not None, "it was not started"
        self._process.terminate()
        return self._process.wait(timeout_s)

    def get(self, port: str, path: str) -> str:
        """What it answers at a path of its metrics or health port. HTTPError, URLError."""
        with urllib.request.urlopen(f"http://{HOST}:{self._ports[port]}{path}", timeout=5) as answer:
            text: str = answer.read().decode()
            return text

    def samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        """The labels and values of a metric."""
        found = (SAMPLE.fullmatch(line) for line in self.get("metrics", "/metrics").splitlines())
        return [
            (dict(LABEL.findall(each["labels"] or "")), float(each["value"]))
            for each in found
            if each and each["name"] == name
        ]

    def sample(self, metric: str, /, **labels: str) -> float | None:
        """The value with exactly these labels; None where there is none."""
        return next((value for found, value in self.samples(metric) if found == labels), None)

    def log_lines(self) -> list[Object]:
        """Everything that it logged, each line an object. ValueError where a line is none."""
        return [json.loads(line) for line in self.log_file.read_text().splitlines()]


def shipped_rules() -> list[Object]:
    """The rules of the ClusterRole that the operator ships."""
    (role,) = read_documents((ROOT / "operator/manifests/cluster-role.yaml").read_text())
    rules: list[Object] = role.value["rules"]
    return rules


def install_role(plane: ControlPlane, namespace: str) -> None:
    """The ServiceAccount in `namespace`, bound to exactly the ClusterRole that the operator ships."""
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": ACCOUNT},
        "rules": shipped_rules(),
    }
    plane.api.apply(f"{RBAC}/clusterroles/{ACCOUNT}", role, "tests")
    _create_account(plane, namespace)
    binding = {"metadata": {"name": f"{ACCOUNT}-{namespace}"}, **_bound("ClusterRole", namespace)}
    plane.api.create(f"{RBAC}/clusterrolebindings", binding)


def install_namespaced_role(plane: ControlPlane, namespace: str) -> None:
    """The ServiceAccount in `namespace`, with rights in that namespace alone: the rules but the last, in a Role."""
    role = {"metadata": {"name": ACCOUNT}, "rules": shipped_rules()[:-1]}
    plane.api.create(f"{RBAC}/namespaces/{namespace}/roles", role)
    _create_account(plane, namespace)
    binding = {"metadata": {"name": ACCOUNT}, **_bound("Role", namespace)}
    plane.api.create(f"{RBAC}/namespaces/{namespace}/rolebindings", binding)


def _create_account(plane: ControlPlane, namespace: str) -> None:
    plane.api.create(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": ACCOUNT}})


def _bound(kind: str, namespace: str) -> Object:
    return {
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": ACCOUNT},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}],
    }


def operator(
    plane: ControlPlane,
    namespace: str,
    folder: Path,
    settings_yaml: str = SETTINGS_YAML,
    *,
    namespaced: bool = False,
    through: Object | None = None,
) -> OperatorProcess:
    """The operator, not started; `namespace` holds its ServiceAccount.

    It works in all namespaces, or `namespaced` in that one alone. `through`: the `cluster` of a kubeconfig that leads
    to the API server by another way.
    """
    (install_namespaced_role if namespaced else install_role)(plane, namespace)
    settings = folder / "settings.yaml"
    settings.write_text(settings_yaml)
    kubeconfig = plane.service_account_kubeconfig(namespace, ACCOUNT, folder)
    if through is not None:
        user: Object = json.loads(kubeconfig.read_text())["users"][0]["user"]
        write_kubeconfig(kubeconfig, through, user, namespace)
    ports = dict(zip(("control", "canary", "metrics", "health"), free_ports(4), strict=True))
    environment: dict[str, Any] = {
        **plane.environment(),
        "KUBECONFIG": str(kubeconfig),
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        **({"CLOISTER_NAMESPACE": namespace} if namespaced else {}),
    }
    arguments = [f"--{name}-port={port}" for name, port in ports.items()]
    command = [sys.executable, "-m", "cloister_operator", "--settings", str(settings), "--verbose", *arguments]
    return OperatorProcess(command, folder, environment, ports)
