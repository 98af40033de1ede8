"""The chart installed by the real helm on a real API server; its hooks run as processes with their pods' own rights."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.control_plane.access import wait_until
from cluster.control_plane.plane import ControlPlane
from cluster.edges.kubelet import Kubelet
from cluster.edges.pod_status import Ended
from support.chart import CHART, REGISTRY, helm

Object = dict[str, Any]
NAME_LABEL = "app.kubernetes.io/name"


@dataclass(frozen=True)
class Release:
    """A release named cloister in a namespace."""

    plane: ControlPlane
    kubelet: Kubelet
    namespace: str
    name: str = "cloister"

    def helm(self, command: str, *arguments: str) -> str:
        """`helm install`, `upgrade`, `uninstall`, `test` or `get …` of this release."""
        words = command.split()
        place = [str(CHART), "--set", REGISTRY] if words[0] in ("install", "upgrade") else []
        access = {"KUBECONFIG": str(self.plane.kubeconfig)}
        return helm(*words, self.name, *place, "--namespace", self.namespace, *arguments, environment=access)

    @contextmanager
    def running(self, command: str, *arguments: str) -> Iterator[Future[str]]:
        """helm at work in the background, while somebody plays its hooks' pods."""
        with ThreadPoolExecutor(1) as pool:
            yield pool.submit(self.helm, command, *arguments)

    def path(self, plural: str, name: str = "", group: str = "/api/v1") -> str:
        """The REST path of an object of the release's namespace."""
        return f"{group}/namespaces/{self.namespace}/{plural}/{name}".rstrip("/")

    def wait_for_pod(self, component: str, but: tuple[str, ...] = (), namespace: str | None = None) -> Object:
        """A pod of the chart's component that runs; not one whose uid is in `but`."""

        def find() -> Object | None:
            selector = f"labelSelector={NAME_LABEL}%3Dcloister-{component}"
            found = self.plane.api.get(f"/api/v1/namespaces/{namespace or self.namespace}/pods?{selector}")["items"]
            fresh = [pod for pod in found if pod["metadata"]["uid"] not in but]
            return next((pod for pod in fresh if pod["status"].get("phase") == "Running"), None)

        pod: Object = wait_until(find, f"a running pod of {component}")
        return pod

    def run_as(self, pod: Object) -> subprocess.CompletedProcess[str]:
        """Run the pod's command here, as its ServiceAccount, to its end."""
        with self.in_background(pod) as process:
            said, errors = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, said, errors)

    @contextmanager
    def in_background(self, pod: Object, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """The pod's command here, as its ServiceAccount, with further arguments; killed at the end."""
        (container,) = pod["spec"]["containers"]
        python, *command = [*container["command"], *container.get("args", [])]
        assert python == "python"
        with tempfile.TemporaryDirectory(prefix="cloister-pod-") as folder:
            account = pod["spec"]["serviceAccountName"]
            kubeconfig = self.plane.service_account_kubeconfig(self.namespace, account, Path(folder))
            with subprocess.Popen(
                [sys.executable, *command, *_mounted(self, pod, Path(folder)), *arguments],
                env={"PATH": os.environ["PATH"], "HOME": folder, "KUBECONFIG": str(kubeconfig)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                try:
                    yield process
                finally:
                    process.kill()

    def end(self, pod: Object, state: Ended | None = None) -> None:
        """The pod's container ends; well, unless `state` says otherwise."""
        metadata = pod["metadata"]
        self.kubelet.order(state or Ended(0), metadata["namespace"], pod=metadata["name"])

    def play_store_hooks(self, seen: tuple[str, ...] = ()) -> tuple[str, tuple[str, ...]]:
        """Run the hook that makes keys for real and let the one for buckets end; what the first said, their uids."""
        credentials = self.wait_for_pod("store-credentials", seen)
        ended = self.run_as(credentials)
        assert ended.returncode == 0, ended.stderr
        self.end(credentials)
        buckets = self.wait_for_pod("store-buckets", seen)
        self.end(buckets)
        return ended.stdout + ended.stderr, tuple(pod["metadata"]["uid"] for pod in (credentials, buckets))


def _mounted(release: Release, pod: Object, folder: Path) -> list[str]:
    """Arguments that stand for the ConfigMap that the readiness pod mounts."""
    sources = [volume["configMap"]["name"] for volume in pod["spec"]["volumes"] if "configMap" in volume]
    if not sources:
        return []
    data = release.plane.api.get(release.path("configmaps", sources[0]))["data"]
    (folder / "plan.json").write_text(data["plan.json"])
    return ["--plan", str(folder / "plan.json")]
