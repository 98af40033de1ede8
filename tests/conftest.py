"""Fixtures for every test: a real object store."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

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
