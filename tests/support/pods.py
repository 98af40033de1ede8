"""Pods of a Ray cluster without Kubernetes: PID namespaces whose first process is what KubeRay has a container run."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from support.child_process import Program

HEAD_ADDRESS, WORKER_ADDRESS, SECOND_WORKER_ADDRESS = "127.0.0.2", "127.0.0.3", "127.0.0.4"
"""On loopback, and not 127.0.0.1: `ray start` takes this machine's own address instead of it."""
STARTED = "Ray runtime started."


def require_namespaces() -> None:
    """Skip where no PID namespace can be made (fail in CI): it needs root or user namespaces."""
    tried = subprocess.run([*_unshare(), "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse(f"a PID namespace needs root or user namespaces: {tried.stderr.strip()}")


class Pod:
    """One container, and commands that are run in it as the kubelet runs them."""

    def __init__(self, name: str, ray_start: str, folder: Path, environment: Mapping[str, str]) -> None:
        self._environment = environment
        script = f"ulimit -n 65536; {ray_start}"
        self._program = Program(name, [*_unshare(), "/bin/bash", "-c", "--", script], folder, environment)

    def start(self) -> None:
        self._program.start()
        wait_until(lambda: STARTED in self.log(), 120, self.log)

    def command(self, *command: str) -> subprocess.Popen[str]:
        """A command in this container; its parent is outside."""
        (first,) = psutil.Process(self._program.pid).children()
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return subprocess.Popen(
            ["nsenter", "--target", str(first.pid), "--pid", "--mount", *user, *command],
            env=dict(self._environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ranks(self) -> list[psutil.Process]:
        """Its processes that train."""
        found = []
        for child in psutil.Process(self._program.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "RayTrainWorker" in child.name():
                    found.append(child)
        return found

    def ended(self) -> bool:
        return not self._program.running

    def log(self) -> str:
        return self._program.log_end()

    def kill(self) -> None:
        self._program.kill()


class RayPods:
    """A head that lasts, and workers that come and go."""

    def __init__(self, folder: Path, environment: Mapping[str, str], *, private: Path | None = None) -> None:
        """`private` is a folder that each pod has for itself: ranks of several pods share no disk."""
        self._folder, self._private = folder, private
        with socket.socket() as probe:
            probe.bind((HEAD_ADDRESS, 0))
            self._address = f"{HEAD_ADDRESS}:{probe.getsockname()[1]}"
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(sys.path),
            "RAY_ADDRESS": self._address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            **environment,
        }

    def __enter__(self) -> RayPods:
        with ExitStack() as stack:
            # Sockets lie below it, whose paths may have 107 characters.
            self._temporary = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            port = self._address.rpartition(":")[2]
            options = f"--head --port={port} --num-cpus=0 --include-dashboard=false"
            self.head = stack.enter_context(self._pod("head", HEAD_ADDRESS, options))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def worker(self, address: str = WORKER_ADDRESS) -> Iterator[Pod]:
        """A worker pod that has joined."""
        cpus = sorted(os.sched_getaffinity(0))
        cpu = cpus[int(address.rpartition(".")[2]) % len(cpus)]  # its own, as far as there are enough
        with self._pod("worker", address, f"--address={self._address} --num-cpus=1", f"taskset -c {cpu}") as pod:
            yield pod

    @contextmanager
    def _pod(self, name: str, address: str, options: str, around: str = "") -> Iterator[Pod]:
        common = f"--node-ip-address={address} --num-gpus=0 --object-store-memory=80000000 --block"
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._folder))
        ray_folder = tempfile.mkdtemp(dir=self._temporary)
        script = f"{around} ray start {options} {common}"
        if self._private is not None:
            script = f"mount --bind {folder} {self._private} && {script}"
        pod = Pod(name, script, folder, {**self._environment, "RAY_TMPDIR": ray_folder})
        try:
            pod.start()
            yield pod
        finally:
            pod.kill()


def wait_until(holds: Callable[[], bool], timeout_s: float, explain: Callable[[], str]) -> None:
    """Wait until it holds; fails with an explanation after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.1)


def _unshare() -> Sequence[str]:
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    return [shutil.which("unshare") or "unshare", *user, "--pid", "--fork", "--kill-child", "--mount-proc"]
