"""Every operation of a store, and how one fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cloister_trainer.storage import (
    Storage,
    StorageError,
    open_storage,
)

OPERATIONS: dict[str, Callable[[Storage, str, Path], object]] = {
    "list": lambda storage, uri, _: storage.list(uri),
    "head": lambda storage, uri, _: storage.head(uri),
    "read": lambda storage, uri, _: storage.read(uri),
    "write": lambda storage, uri, _: storage.write(uri, b"x"),
    "create": lambda storage, uri, _: storage.create(uri, b"x"),
    "replace": lambda storage, uri, _: storage.replace(uri, b"x", "0" * 32),
    "upload": lambda storage, uri, folder: storage.upload(_file(folder), uri),
    "download": lambda storage, uri, folder: storage.download(uri, folder / "copy"),
    "delete": lambda storage, uri, _: storage.delete(uri),
    "delete_prefix": lambda storage, uri, _: storage.delete_prefix(uri),
}
WRITES = ("write", "create", "replace", "upload", "delete")
each_operation = pytest.mark.parametrize("operation", OPERATIONS)


def _file(folder: Path) -> Path:
    (folder / "source").write_bytes(b"x")
    return folder / "source"


def failure(operation: str, storage: Storage, uri: str, folder: Path) -> StorageError:
    with pytest.raises(StorageError) as failed:
        OPERATIONS[operation](storage, uri, folder)
    return failed.value


def quick(environment: dict[str, str]) -> Storage:
    """Two tries, so that a store that is gone is soon known to be."""
    return open_storage(environ={**environment, "AWS_MAX_ATTEMPTS": "2"})
