"""Storage: one object for all URIs. It chooses the backend by scheme and makes the S3 client when first needed."""

from __future__ import annotations

import io
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from cloister_api.layout import join
from cloister_api.run import StorageDefaults
from cloister_trainer.storage.base import OWN_PREFIX, Backend, Location, ObjectInfo, parse_uri
from cloister_trainer.storage.errors import AlreadyExists, Changed, InvalidUri, MissingObject, Unsupported
from cloister_trainer.storage.local import LocalBackend

PVC_ROOT_ENVIRONMENT = "CLOISTER_PVC_ROOT"
DEFAULT_PVC_ROOT = "/mnt/pvc"
STREAM_BUFFER_BYTES = 1024 * 1024
CHUNK_BYTES = 256 * 1024


def open_storage(defaults: StorageDefaults | None = None, environ: Mapping[str, str] = os.environ) -> Storage:
    """A Storage by the administrator's defaults and, over them, AWS's own environment names. No network is touched."""
    return Storage(defaults or StorageDefaults(), environ)


class Storage:
    """Objects at s3://bucket/key, file:///path and, read-only, pvc://claim/path ($CLOISTER_PVC_ROOT/<claim>/path).

    Every method raises StorageError's subclasses, each with the URI in its sentence: InvalidUri, AccessDenied,
    MissingBucket, MissingObject, Unreachable, Full, Unsupported. Threads may share a Storage. Pickled, it carries the
    defaults only and is opened again from the environment of the process that reads it.
    """

    def __init__(self, defaults: StorageDefaults, environ: Mapping[str, str]) -> None:
        self._defaults, self._environ = defaults, environ
        self._file = LocalBackend()
        self._pvc = LocalBackend(Path(environ.get(PVC_ROOT_ENVIRONMENT, DEFAULT_PVC_ROOT)))
        self._s3: Backend | None = None
        self._s3_process = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[object, ...]:
        return (open_storage, (self._defaults,))

    def list(self, uri: str) -> list[ObjectInfo]:
        """The object that the URI names, or all objects below it, sorted by name; nothing there is an empty list."""
        backend, location = self._find(uri)
        return backend.list(location)

    def head(self, uri: str) -> ObjectInfo:
        """One object's size and ETag; MissingObject."""
        backend, location = self._object(uri)
        return backend.head(location)

    def exists(self, uri: str) -> bool:
        """Whether there is an object (not: a prefix) at the URI."""
        try:
            self.head(uri)
        except MissingObject:
            return False
        return True

    def read(self, uri: str) -> bytes:
        """The whole object; MissingObject."""
        with self.open(uri) as stream:
            return stream.read()

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        """Bytes [start, start + length), fewer where the object ends before."""
        if length == 0:
            return b""
        with self.open(uri, start, length) as stream:
            return stream.read()

    def open(self, uri: str, start: int = 0, length: int | None = None, etag: str | None = None) -> BinaryIO:
        """A buffered, seekable stream over the object or a range of it; it goes on after a broken connection.

        Positions count from `start`. With an ETag, Changed when the object is another one.
        """
        backend, location = self._object(uri)
        return io.BufferedReader(backend.open(location, start, length, etag), STREAM_BUFFER_BYTES)

    def chunks(self, uri: str, start: int, length: int, etag: str) -> Iterator[bytes]:
        """Bytes [start, start + length) of this version as they come, each at most CHUNK_BYTES; Changed."""
        backend, location = self._object(uri)
        with backend.open(location, start, length, etag) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk

    def write(self, uri: str, data: bytes) -> str:
        """Write an object, whole or not at all; its ETag."""
        backend, location = self._object(uri)
        return backend.write(location, data)

    def create(self, uri: str, data: bytes) -> str:
        """Write an object only if there is none (If-None-Match: *); its ETag. AlreadyExists."""
        backend, location = self._object(uri)
        return backend.create(location, data)

    def replace(self, uri: str, data: bytes, etag: str) -> str:
        """Write an object only if its ETag is still this one (If-Match); the new ETag. Changed."""
        backend, location = self._object(uri)
        return backend.replace(location, data, etag)

    def upload(self, path: Path, uri: str) -> None:
        """Write a local file's content to the URI, large files in parallel parts."""
        backend, location = self._object(uri)
        backend.upload(path, location)

    def download(self, uri: str, path: Path) -> None:
        """Write the object to a local file, large ones in parallel ranges; `path` appears when it is complete."""
        backend, location = self._object(uri)
        backend.download(location, path)

    def delete(self, uri: str) -> None:
        """Delete one object; a missing one is fine."""
        backend, location = self._object(uri)
        backend.delete(location)

    def delete_prefix(self, uri: str) -> int:
        """Delete all objects below the URI; how many there were. A whole bucket is refused."""
        backend, location = self._object(uri)
        return backend.delete_prefix(location)

    def local_path(self, uri: str) -> Path | None:
        """Where a file:// or pvc:// URI lies on this machine; None for s3://."""
        backend, location = self._find(uri)
        return backend.path(location) if isinstance(backend, LocalBackend) else None

    def check_conditional_put(self, uri: str) -> None:
        """Write and delete a probe below the URI; Unsupported when the store ignores If-None-Match or If-Match."""
        probe = join(uri, f"{OWN_PREFIX}probe-{secrets.token_hex(8)}")
        etag = self.create(probe, b"first")
        try:
            self._expect_refusals(uri, probe, etag)
        finally:
            self.delete(probe)

    def _expect_refusals(self, uri: str, probe: str, etag: str) -> None:
        try:
            self.create(probe, b"second")
        except AlreadyExists:
            pass
        else:
            raise Unsupported(_IGNORES.format(uri=uri, header="If-None-Match"))
        self.replace(probe, b"third", etag)
        try:
            self.replace(probe, b"fourth", etag)
        except Changed:
            pass
        else:
            raise Unsupported(_IGNORES.format(uri=uri, header="If-Match"))

    def _object(self, uri: str) -> tuple[Backend, Location]:
        backend, location = self._find(uri)
        if not location.path:
            raise InvalidUri(f"{uri!r} names no object: add the object's path.")
        return backend, location

    def _find(self, uri: str) -> tuple[Backend, Location]:
        location = parse_uri(uri)
        if location.scheme == "s3":
            return self._s3_backend(), location
        return (self._file if location.scheme == "file" else self._pvc), location

    def _s3_backend(self) -> Backend:
        """The backend of this process: connections must not be shared with a forked child."""
        with self._lock:
            if self._s3 is None or self._s3_process != os.getpid():
                from cloister_trainer.storage.s3 import S3Backend
                from cloister_trainer.storage.s3_client import make_client

                self._s3, self._s3_process = S3Backend(make_client(self._defaults, self._environ)), os.getpid()
            return self._s3


_IGNORES = (
    "The object store at {uri} ignores {header}, so that two jobs could publish over each other: "
    "use a store and version from the documented list."
)
