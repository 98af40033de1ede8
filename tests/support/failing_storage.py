"""A store that breaks at a chosen call: the process dies before it, or an error comes back after it took effect."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

from cloister_trainer.storage import ObjectInfo, Storage, Unreachable, open_storage

CHANGING = frozenset({"write", "create", "replace", "upload", "delete", "delete_prefix"})


class Moment(Enum):
    BEFORE = "before"
    AFTER = "after"


class Crash(BaseException):
    """The process is gone: no handler of the code under test may see this as an ordinary error."""


class RecordingStorage(Storage):
    """The real store; every call is counted, and the chosen one crashes."""

    def __init__(self, crash_at: int | None = None, moment: Moment = Moment.BEFORE) -> None:
        self.calls: list[tuple[str, str]] = []
        self._inner = open_storage(environ={})
        self._crash_at, self._moment = crash_at, moment

    def _call(self, name: str, uri: str, call: Callable[[], Any]) -> Any:
        number = len(self.calls)
        self.calls.append((name, uri))
        if number == self._crash_at and self._moment is Moment.BEFORE:
            raise Crash
        result = call()
        if number == self._crash_at:
            raise Unreachable(f"{uri}: the connection was lost before the answer came.")
        return result

    def list(self, uri: str) -> list[ObjectInfo]:
        found: list[ObjectInfo] = self._call("list", uri, lambda: self._inner.list(uri))
        return found

    def head(self, uri: str) -> ObjectInfo:
        info: ObjectInfo = self._call("head", uri, lambda: self._inner.head(uri))
        return info

    def open(self, uri: str, start: int = 0, length: int | None = None, etag: str | None = None) -> BinaryIO:
        stream: BinaryIO = self._call("open", uri, lambda: self._inner.open(uri, start, length, etag))
        return stream

    def write(self, uri: str, data: bytes) -> str:
        etag: str = self._call("write", uri, lambda: self._inner.write(uri, data))
        return etag

    def create(self, uri: str, data: bytes) -> str:
        etag: str = self._call("create", uri, lambda: self._inner.create(uri, data))
        return etag

    def replace(self, uri: str, data: bytes, etag: str) -> str:
        new: str = self._call("replace", uri, lambda: self._inner.replace(uri, data, etag))
        return new

    def upload(self, path: Path, uri: str) -> None:
        self._call("upload", uri, lambda: self._inner.upload(path, uri))

    def download(self, uri: str, path: Path) -> None:
        self._call("download", uri, lambda: self._inner.download(uri, path))

    def delete(self, uri: str) -> None:
        self._call("delete", uri, lambda: self._inner.delete(uri))

    def delete_prefix(self, uri: str) -> int:
        count: int = self._call("delete_prefix", uri, lambda: self._inner.delete_prefix(uri))
        return count
