"""Fixtures for every test: a real object store, a small disk."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister_trainer.storage import Storage, open_storage
from support.seaweedfs import SeaweedFS


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[SeaweedFS]:
    """A real S3 server on loopback, one for the whole session."""
    with SeaweedFS() as store:
        yield store


@pytest.fixture
def bucket(seaweedfs: SeaweedFS) -> Iterator[str]:
    """The name of a new, empty bucket; deleted with all that is in it."""
    name = f"test-{secrets.token_hex(6)}"
    seaweedfs.create_bucket(name)
    yield name
    seaweedfs.delete_bucket(name)


@pytest.fixture(scope="session")
def s3_storage(seaweedfs: SeaweedFS) -> Storage:
    """The session's store through Cloister's own interface, as the admin."""
    return open_storage(environ=seaweedfs.environment())


@pytest.fixture(scope="session")
def session_bucket(seaweedfs: SeaweedFS) -> str:
    """URI of a bucket that all tests share; making one takes longer than most tests."""
    return seaweedfs.create_bucket("session")


@pytest.fixture
def s3_uri(session_bucket: str) -> str:
    """A prefix that nobody else uses."""
    return f"{session_bucket}/{secrets.token_hex(6)}"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB, in a mount namespace of its own that ends with the process that holds it.

    Without root it belongs to a user namespace. Where neither is allowed the test is skipped, and fails in CI.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    script = 'mount -t tmpfs -o size=1m tmpfs "$0" && echo mounted && exec cat'
    command = ["unshare", *user, "--mount", "sh", "-c", script, str(disk)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stderr
        if holder.stdout.readline() != b"mounted\n":
            refuse = pytest.fail if os.environ.get("CI") else pytest.skip
            refuse(f"a small file system needs root or user namespaces: {holder.stderr.read().decode().strip()}")
        yield Path(f"/proc/{holder.pid}/root{disk}")  # the holder ends when its stdin is closed, here
