"""Cloister as its chart installs it, with the chart's object store, and what a person puts into that store."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.control_plane.access import Cluster, wait_until
from cluster.control_plane.binaries import program
from support.chart import CHART, helm
from support.seaweedfs import free_ports
from support.smollm2 import cached_folder

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "01-quickstart"
IMAGES = ROOT / ".build" / "images"
RELEASE, NAMESPACE = "cloister", "cloister-system"
ADMIN_SECRET, STORE = "cloister-store", "svc/cloister-store"
STORE_PORT = 8333
INSTALL_LIMIT = "5m"


@dataclass(frozen=True)
class Installation:
    """A release of the chart; `tenants` are the namespaces that the store knows."""

    cluster: Cluster
    tenants: tuple[str, ...]

    def install(self) -> None:
        """`helm install`, once images are there and the tenants' namespaces are made."""
        for name in (NAMESPACE, *self.tenants):
            level = {"pod-security.kubernetes.io/enforce": "restricted"}
            self.cluster.api.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": level}})
        self._helm("install", RELEASE, str(CHART), "--values", "-", "--timeout", INSTALL_LIMIT)
        self.cluster.forget_discovery()
        wait_until(self._is_ready, "the operator to be ready", 120.0)

    def uninstall(self) -> None:
        """`helm uninstall`."""
        self._helm("uninstall", RELEASE, "--wait")

    @contextmanager
    def store(self) -> Iterator[S3Client]:
        """The object store, as its administrator, through `kubectl port-forward`."""
        import boto3
        from botocore.config import Config

        (port,) = free_ports(1)
        path = f"/api/v1/namespaces/{NAMESPACE}/secrets/{ADMIN_SECRET}"
        keys = {name: base64.b64decode(value).decode() for name, value in self.cluster.api.get(path)["data"].items()}
        command = [
            str(program("kubectl")), "--kubeconfig", str(self.cluster.kubeconfig), "port-forward",
            "--namespace", NAMESPACE, STORE, f"{port}:{STORE_PORT}",
        ]  # fmt: skip
        with subprocess.Popen(command, env=self.cluster.environment(), stdout=subprocess.PIPE, text=True) as forward:
            try:
                assert forward.stdout and "Forwarding" in forward.stdout.readline()
                yield boto3.client(
                    "s3",
                    endpoint_url=f"http://127.0.0.1:{port}",
                    region_name="us-east-1",
                    aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
                    aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
                    config=Config(signature_version="s3v4", s3={"addressing_style": "path"}, proxies={}),
                )
            finally:
                forward.terminate()

    def upload_quickstart(self) -> None:
        """The quickstart's model and data, where its job looks for them."""
        with self.store() as client:
            for file in cached_folder().iterdir():
                client.upload_file(str(file), "models", f"smollm2-135m-instruct/{file.name}")
            for name in ("train.jsonl", "holdout.jsonl"):
                client.upload_file(str(EXAMPLE / name), "datasets", f"orders/{name}")

    def _helm(self, *arguments: str) -> str:
        access = {"KUBECONFIG": str(self.cluster.kubeconfig)}
        text = json.dumps(self._values()) if "-" in arguments else None
        return helm(*arguments, "--namespace", NAMESPACE, environment=access, text=text)

    def _values(self) -> dict[str, Any]:
        """For one node with two cores: little is asked for, so that all pods of a job find room."""
        tag = {"tag": "dev"}
        tenants = [
            {
                "namespace": name,
                "read": ["models", "datasets"],
                "write": [f"adapters/{name}/*", f"cloister-runs/{name}/*"],
            }
            for name in self.tenants
        ]
        return {
            "images": {"registry": "localhost", "operator": tag, "trainer": tag, "store": tag},
            "settings": {
                "profiles": {"default": {"resources": _resources("2Gi", "6Gi"), "sharedMemory": "1Gi"}},
                "resources": {
                    "prepare": _resources("1Gi", "6Gi"),
                    "head": _resources("1Gi", "4Gi"),
                    "submitter": _resources("128Mi", "1Gi"),
                    "publish": _resources("1Gi", "4Gi"),
                },
            },
            "store": {"enabled": True, "size": "5Gi", "resources": _resources("256Mi", "2Gi"), "tenants": tenants},
        }

    def _is_ready(self) -> bool:
        path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{RELEASE}-operator"
        return bool(self.cluster.api.get(path).get("status", {}).get("readyReplicas") == 1)


def _resources(request: str, limit: str) -> dict[str, Any]:
    return {"requests": {"cpu": "50m", "memory": request}, "limits": {"memory": limit}}
