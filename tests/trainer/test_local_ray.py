"""A local Ray that a run starts asks nobody outside this machine anything."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

ASKED_WITHIN_S = 8
"""Ray's dashboard asks a cloud's metadata server when it starts, a second or two after ray.init."""
START = f"""
import time
from cloister_trainer.train.launch import ray_cluster
with ray_cluster(1, gpus=False):
    time.sleep({ASKED_WITHIN_S})
"""


@pytest.mark.parametrize("home", [None, "", "/home/of/the/user"])
def test_home_is_again_what_it_was_for_the_driver_and_for_the_ranks(
    home: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloister_trainer.train.launch import USERS_HOME, _home_without_a_cloud, _set_master

    for name in (USERS_HOME, "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    if home is None:
        monkeypatch.delenv("HOME", raising=False)
    else:
        monkeypatch.setenv("HOME", home)
    with _home_without_a_cloud(tmp_path):
        inherited = dict(os.environ)
    assert inherited["HOME"] == str(tmp_path)
    assert os.environ.get("HOME") == home
    os.environ.update(inherited)
    _set_master("127.0.0.1", 1)
    assert os.environ.get("HOME") == home
    assert USERS_HOME not in os.environ


def test_no_metadata_server_is_asked_whose_machine_this_is() -> None:
    """Every HTTP request would come to this proxy first."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "http_proxy": address,
            "no_proxy": "127.0.0.1,localhost",
        }
        subprocess.run([sys.executable, "-c", START], env=environment, check=True, timeout=120)
        requests = []
        with suppress(BlockingIOError):
            while True:
                connection, _ = proxy.accept()
                with connection:
                    connection.settimeout(5.0)
                    requests.append(connection.recv(200).partition(b"\r\n")[0])
    assert requests == []
