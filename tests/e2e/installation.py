"""Cloister as its chart installs it, with the chart's object store, and what a person puts into that store."""

from __future__ import annotations

import base64
import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloister_trainer.readiness.tiny import rows, write_model
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
TENANTS = ("legal", "finance")
"""Namespaces that the store knows, each with credentials of its own."""
ADMIN_SECRET, STORE = "cloister-store", "svc/cloister-store"
STORE_PORT = 8333
INSTALL_LIMIT = "5m"
TINY_ROWS, SLOW_ROWS = "rows.jsonl", "long-rows.jsonl"
SLOW_EXAMPLES, SLOW_WORDS = 512, 100
UNCONFINED = "unconfined"
UNCONFINED_POD = {"container.apparmor.security.beta.kubernetes.io/ray-worker": "unconfined"}
"""A profile whose pods Pod Security refuses."""


def tiny_uri(name: str) -> str:
    """Where `Installation.upload_tiny` puts the model, or rows."""
    return f"s3://{'models' if name == 'model' else 'datasets'}/tiny/{name}"


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

    def upgrade(self, *changes: str, hooks: bool = True) -> None:
        """`helm upgrade --set …`, until the new operator is ready; without `hooks`, nothing runs before or after it."""
        flags = [word for change in changes for word in ("--set", change)] + ([] if hooks else ["--no-hooks"])
        self._helm("upgrade", RELEASE, str(CHART), "--values", "-", *flags, "--timeout", INSTALL_LIMIT, "--wait")

    def try_out(self) -> str:
        """What `helm test` prints. HelmError when the cluster is not ready."""
        return self._helm("test", RELEASE, "--logs", "--timeout", "10m")

    def uninstall(self) -> None:
        """`helm uninstall`."""
        self._helm("uninstall", RELEASE, "--wait")

    @contextmanager
    def store(self, secret: str = f"{NAMESPACE}/{ADMIN_SECRET}") -> Iterator[S3Client]:
        """The object store through `kubectl port-forward`, with the credentials of a Secret; the administrator's."""
        import boto3
        from botocore.config import Config

        (port,) = free_ports(1)
        namespace, _, name = secret.partition("/")
        path = f"/api/v1/namespaces/{namespace}/secrets/{name}"
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

    def keys(self, bucket: str, prefix: str) -> list[str]:
        """Names of the stored objects that begin with `prefix`."""
        with self.store() as client:
            return _keys(client, bucket, prefix)

    def download(self, uri: str, folder: Path) -> Path:
        """A published folder and the current.json beside it, as they are in the store; where the folder lies."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        above = key.rpartition("/")[0]
        with self.store() as client:
            for name in [f"{above}/current.json", *_keys(client, bucket, f"{key}/")]:
                target = folder / name.removeprefix(f"{above}/")
                target.parent.mkdir(parents=True, exist_ok=True)
                client.download_file(bucket, name, str(target))
        return folder / key.removeprefix(f"{above}/")

    def upload_quickstart(self) -> None:
        """The quickstart's model and data, where its job looks for them."""
        with self.store() as client:
            for file in cached_folder().iterdir():
                client.upload_file(str(file), "models", f"smollm2-135m-instruct/{file.name}")
            for name in ("train.jsonl", "holdout.jsonl"):
                client.upload_file(str(EXAMPLE / name), "datasets", f"orders/{name}")

    def upload_tiny(self) -> None:
        """A model with random weights and rows for it: some that are trained in no time, and many long ones."""
        with self.store() as client, tempfile.TemporaryDirectory() as folder:
            write_model(Path(folder))
            for file in Path(folder).iterdir():
                client.upload_file(str(file), "models", f"tiny/model/{file.name}")
            client.put_object(Bucket="datasets", Key=f"tiny/{TINY_ROWS}", Body=rows())
            client.put_object(Bucket="datasets", Key=f"tiny/{SLOW_ROWS}", Body=_long_rows())

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
            "readiness": {"gpuOptional": True},
            "images": {"registry": "localhost", "operator": tag, "trainer": tag, "store": tag},
            "settings": {
                "profiles": {
                    "default": {"resources": _resources("2Gi", "6Gi"), "sharedMemory": "1Gi"},
                    UNCONFINED: {"resources": _resources("2Gi", "6Gi"), "annotations": UNCONFINED_POD},
                },
                "patience": {"pods": "1m", "control": "1m"},
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


def _keys(client: S3Client, bucket: str, prefix: str) -> list[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


def _long_rows() -> bytes:
    lines = [
        {"prompt": f"w{i % 50 + 2}", "completion": "".join(f" w{(i * 7 + j) % 60 + 2}" for j in range(SLOW_WORDS))}
        for i in range(SLOW_EXAMPLES)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def _resources(request: str, limit: str) -> dict[str, Any]:
    return {"requests": {"cpu": "50m", "memory": request}, "limits": {"memory": limit}}
