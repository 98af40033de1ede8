"""sha256 of files and streams, in constant memory."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

from cloister_trainer.records import FileDigest

CHUNK_BYTES = 4 << 20


def digest_bytes(name: str, data: bytes) -> FileDigest:
    """Name, size and sha256 of `data`."""
    return FileDigest(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def digest_file(name: str, path: Path) -> FileDigest:
    """Name, size and sha256 of the file at `path`."""
    with path.open("rb") as stream:
        return digest_stream(name, stream)


def digest_stream(name: str, stream: BinaryIO, copy_to: BinaryIO | None = None) -> FileDigest:
    """Name, size and sha256 of what `stream` still holds, written to `copy_to` on the way."""
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
        if copy_to is not None:
            copy_to.write(chunk)
    return FileDigest(name=name, size=size, sha256=digest.hexdigest())
