"""A way into one cluster: its kubeconfig, its API, kubectl. Nothing here reads KUBECONFIG or ~/.kube."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import urllib3

from cluster.control_plane.api import Api, ApiError, Object
from cluster.control_plane.binaries import program
from cluster.control_plane.certificates import Certified, write_secret

NAMESPACE_LABEL = "cloister.dev/test-namespace"
POLL_S = 0.05


class KubectlError(Exception):
    """kubectl ended with a failure; the message is what it said."""


class Cluster:
    """One cluster that a kubeconfig file (JSON, credentials inside) names."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig

    @cached_property
    def api(self) -> Api:
        """The API server, as the kubeconfig's user."""
        return Api(self.kubeconfig)

    def kubectl(self, *arguments: str, text: str | None = None, namespace: str | None = None) -> str:
        """What kubectl prints; `text` is its standard input. KubectlError when it fails."""
        place = ["--namespace", namespace] if namespace else []
        ended = subprocess.run(
            [program("kubectl"), "--kubeconfig", self.kubeconfig, *place, *arguments],
            env=self.environment(),
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode:
            raise KubectlError(ended.stderr.strip() or ended.stdout.strip())
        return ended.stdout

    def forget_discovery(self) -> None:
        """kubectl asks anew which kinds there are; it remembers them for minutes."""
        shutil.rmtree(self.kubeconfig.parent / "home" / ".kube", ignore_errors=True)

    def environment(self) -> dict[str, str]:
        """The environment for programs that use this cluster and no other."""
        home = self.kubeconfig.parent / "home"
        home.mkdir(exist_ok=True)
        return {"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": str(self.kubeconfig)}

    def create_namespace(self, *, pod_security: str = "restricted", labels: dict[str, str] | None = None) -> str:
        """A new namespace with a name of its own; ready for pods."""
        name = f"test-{secrets.token_hex(4)}"
        level = {"pod-security.kubernetes.io/enforce": pod_security, NAMESPACE_LABEL: "true"}
        self.api.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": level | (labels or {})}})
        account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        wait_until(lambda: self.api.exists(account), f"the service account of namespace {name}")
        return name

    def delete_namespace(self, name: str) -> None:
        """Ask for the deletion of a namespace that `create_namespace` made; PermissionError for any other."""
        namespace = self.api.get(f"/api/v1/namespaces/{name}")
        if namespace["metadata"].get("labels", {}).get(NAMESPACE_LABEL) != "true":
            raise PermissionError(
                f"namespace {name} has no label {NAMESPACE_LABEL}: no test made it, so none deletes it"
            )
        self.api.delete(f"/api/v1/namespaces/{name}")

    def service_account_kubeconfig(self, namespace: str, name: str, folder: Path) -> Path:
        """A kubeconfig that is a ServiceAccount, with a token of a day."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        token = self.api.create(path, {"spec": {"expirationSeconds": 86400}})["status"]["token"]
        own: Object = json.loads(self.kubeconfig.read_text())["clusters"][0]["cluster"]
        file = folder / f"{namespace}.{name}.kubeconfig"
        return write_kubeconfig(file, own, {"token": token}, namespace)

    def close(self) -> None:
        """Close the connections; the next use of `api` opens new ones."""
        if opened := self.__dict__.pop("api", None):
            opened.close()


def named_cluster(context: str, folder: Path, variable: str) -> Cluster:
    """The cluster of a context in the user's own kubeconfig, which an environment variable names.

    Raises:
        KubectlError: there is no such context.
    """
    view = ["config", "view", "--raw", "--minify", "--flatten", "--output=json", f"--context={context}"]
    command = [str(program("kubectl")), *view]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise KubectlError(f"{variable} names the context {context}: {ended.stderr.strip()}")
    return Cluster(write_secret(folder / "kubeconfig", ended.stdout.encode()))


def write_kubeconfig(path: Path, cluster: Object, user: Object, namespace: str = "default") -> Path:
    """Write a kubeconfig with one cluster and one user; JSON, which every reader of YAML takes."""
    context = {"cluster": "cloister-test", "user": "user", "namespace": namespace}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "cloister-test", "cluster": cluster}],
        "users": [{"name": "user", "user": user}],
        "contexts": [{"name": "cloister-test", "context": context}],
        "current-context": "cloister-test",
    }
    return write_secret(path, json.dumps(config).encode())


def cluster_entry(server: str, authority: bytes) -> Object:
    """A kubeconfig's `cluster`."""
    return {"server": server, "certificate-authority-data": base64.b64encode(authority).decode()}


def user_entry(certified: Certified) -> Object:
    """A kubeconfig's `user`, with a client certificate."""
    return {
        "client-certificate-data": base64.b64encode(certified.certificate).decode(),
        "client-key-data": base64.b64encode(certified.key).decode(),
    }


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """The first true value of `condition`, asked again and again; refused and lost connections count as no.

    Raises:
        TimeoutError: it was never true.
    """
    deadline, last = time.monotonic() + timeout_s, "it said no"
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
        except (ApiError, urllib3.exceptions.HTTPError, OSError) as error:
            last = str(error)
        time.sleep(POLL_S)
    raise TimeoutError(f"Waited {timeout_s:.0f} s for {what}: {last}")
