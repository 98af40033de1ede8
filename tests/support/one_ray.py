"""One Ray on loopback that many runs join, as `cloister run` starts one for itself, in a process of its own."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray._private.authentication_test_utils import reset_auth_token_state

END_S = 60.0
_HOLD = """
import sys
from cloister_trainer.train.launch import ray_cluster
import ray

with ray_cluster(int(sys.argv[1]), gpus=False):
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


@contextmanager
def one_ray(cpus: int, folder: Path) -> Iterator[None]:
    """Inside, a driver of this process joins a Ray of so many CPUs; only who has this process's token may.

    Its processes end with this context, and when this process is killed: the one that holds it then reads the end of
    its input, and the kernel ends what it started. What it says goes into `folder`.
    """
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "token")
        environment.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        environment.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        environment.delenv("RAY_ADDRESS", raising=False)
        reset_auth_token_state()  # Ray remembers what it found when it was imported, or used, before
        said = folder / "ray.log"
        with said.open("wb") as log:
            holder = subprocess.Popen(
                [sys.executable, "-c", _HOLD, str(cpus)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert holder.stdin and holder.stdout
        try:
            address = holder.stdout.readline().strip()
            assert address, said.read_text()
            environment.setenv("RAY_ADDRESS", address)
            yield
        finally:
            holder.stdin.close()
            try:
                holder.wait(END_S)
            except subprocess.TimeoutExpired:
                holder.kill()
                holder.wait()
            holder.stdout.close()
    reset_auth_token_state()
