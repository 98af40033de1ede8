"""Small pods for tests: a shell with busybox, allowed by Pod Security `restricted`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.control_plane.access import Cluster, KubectlError, wait_until
from cluster.control_plane.api import Object
from e2e.cluster.images import TOOLS
from e2e.cluster.services import RESTRICTED

SERVE = "echo here > /tmp/index.html; {servers} exec sleep 3600"
CONNECT_S = 2


def create_pod(
    cluster: Cluster,
    namespace: str,
    name: str,
    command: Sequence[str] = ("sleep", "3600"),
    *,
    labels: Mapping[str, str] | None = None,
    container: Mapping[str, Any] | None = None,
    claim: str | None = None,
    pod: Mapping[str, Any] | None = None,
) -> None:
    """Make a pod with a writable folder /tmp, and a claim's volume at /data; `container` and `pod` add fields."""
    volumes: list[Object] = [{"name": "tmp", "emptyDir": {}}]
    mounts: list[Object] = [{"name": "tmp", "mountPath": "/tmp"}]
    if claim:
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": "data", "mountPath": "/data"})
    main: Object = {
        "name": "main",
        "image": TOOLS,
        "imagePullPolicy": "Never",
        "command": list(command),
        "securityContext": RESTRICTED,
        "volumeMounts": mounts,
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
        **(container or {}),
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "containers": [main],
        "volumes": volumes,
        **(pod or {}),
    }
    body = {"metadata": {"name": name, "labels": dict(labels or {})}, "spec": spec}
    cluster.api.create(f"/api/v1/namespaces/{namespace}/pods", body)


def create_server(cluster: Cluster, namespace: str, name: str, *ports: int, labels: Mapping[str, str]) -> str:
    """A pod that answers HTTP on these ports; its address, once it does."""
    servers = " ".join(f"httpd -p {port} -h /tmp;" for port in ports)
    probe = {"httpGet": {"path": "/", "port": ports[0]}, "periodSeconds": 1}
    command = ("sh", "-c", SERVE.format(servers=servers))
    create_pod(cluster, namespace, name, command, labels=labels, container={"readinessProbe": probe})
    return ready_address(cluster, namespace, name)


def get_pod(cluster: Cluster, namespace: str, name: str) -> Object:
    """The pod as it is."""
    found: Object = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/{name}")
    return found


def ready_address(cluster: Cluster, namespace: str, name: str) -> str:
    """The pod's address, once it is Ready. AssertionError with its status when it ended instead."""

    def is_ready() -> bool:
        status = get_pod(cluster, namespace, name)["status"]
        assert status.get("phase") not in ("Failed", "Succeeded"), json.dumps(status, indent=1)
        return any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions", []))

    wait_until(is_ready, f"pod {namespace}/{name} to be Ready")
    address: str = get_pod(cluster, namespace, name)["status"]["podIP"]
    return address


def wait_for_phase(cluster: Cluster, namespace: str, name: str, phase: str) -> Object:
    """The pod, once it is in this phase."""

    def in_phase() -> Object | None:
        found = get_pod(cluster, namespace, name)
        return found if found["status"].get("phase") == phase else None

    found: Object = wait_until(in_phase, f"pod {namespace}/{name} to be {phase}")
    return found


def execute(cluster: Cluster, namespace: str, name: str, *command: str) -> str:
    """What a command in the pod prints. KubectlError when it fails."""
    return cluster.kubectl("exec", name, "--", *command, namespace=namespace)


def reaches(cluster: Cluster, namespace: str, name: str, address: str, port: int) -> bool:
    """Whether the pod can open a connection there within two seconds and gets an answer."""
    try:
        execute(cluster, namespace, name, "sh", "-c", f"{dial(address, port)} | grep -q .")
    except KubectlError as error:
        assert str(error).endswith("exit code 1"), error  # it ran, and no answer came
        return False
    return True


def dial(address: str, port: int) -> str:
    """A shell command that asks for a page and prints the answer; it fails when nobody answers within two seconds."""
    return f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w {CONNECT_S} {address} {port}"
