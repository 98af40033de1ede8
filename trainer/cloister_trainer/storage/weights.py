"""A weight file on its way to the node's disk, hashed while it streams.

A file's parts arrive in any order and are written where they belong. sha256 runs in order only: whichever thread
completes the part at the front hashes on, reading the parts from the page cache, where they were written a moment ago.
The journal keeps the hash of the file up to the end of every part, so that after a kill the kept bytes are proven by
hashing them again, and fetching goes on where the proof ends.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from cloister_trainer.records import FileDigest, ListedFile
from cloister_trainer.storage.errors import Changed
from cloister_trainer.storage.storage import Storage

PART_BYTES = 16 * 1024 * 1024
READ_BYTES = 256 * 1024
"""Read at a time for hashing: what stays in a core's own cache."""


@dataclass(frozen=True)
class Source:
    """A weight file in its store, as prepare listed it."""

    storage: Storage
    uri: str
    listed: ListedFile


class Progress:
    """Tells `on_bytes` of bytes, from one thread at a time."""

    def __init__(self, on_bytes: Callable[[int], None] | None) -> None:
        self._on_bytes, self._lock = on_bytes, threading.Lock()

    def add(self, count: int) -> None:
        """`count` more bytes are there."""
        if self._on_bytes is not None and count:
            with self._lock:
                self._on_bytes(count)


class Journal:
    """Lines of {name, end, sha256 of the file's first `end` bytes}, appended as the hash moves on."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._kept: dict[str, dict[int, str]] = {}
        for name, end, sha256 in journal_lines(path):
            self._kept.setdefault(name, {})[end] = sha256

    def __enter__(self) -> Self:
        self._file = self._path.open("a")
        self._file.write("\n")  # ends a line that a kill cut short
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def kept(self, name: str) -> dict[int, str]:
        """What earlier processes noted about a file: sha256 by end."""
        return self._kept.get(name, {})

    def note(self, name: str, end: int, sha256: str) -> None:
        """The file's first `end` bytes have this hash."""
        with self._lock:
            self._file.write(json.dumps([name, end, sha256]) + "\n")
            self._file.flush()

    def delete(self) -> None:
        """Everything is complete."""
        self._path.unlink(missing_ok=True)


class WeightFile(Protocol):
    """A weight file that is being brought to the node."""

    bytes_missing: int
    """Bytes of local disk that it still needs, once prepared."""

    def prepare(self) -> None:
        """See what is there already."""

    def parts(self) -> Iterator[Callable[[], None]]:
        """Tasks, in the order of the file, that together complete it; threads may run them side by side."""

    def digest(self) -> FileDigest:
        """Size and sha256, once complete."""


class PartialFile:
    """A weight file that is downloaded."""

    def __init__(self, source: Source, path: Path, journal: Journal, progress: Progress) -> None:
        self._source, self._listed, self._path = source, source.listed, path
        self._journal, self._progress = journal, progress
        self._hash, self._front = hashlib.sha256(), 0
        self._arrived: set[int] = set()
        self._hashing, self._lock = False, threading.Lock()
        self.bytes_missing = source.listed.size

    def prepare(self) -> None:
        """Hash the bytes kept by an earlier process, up to the first that is not what the journal says."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.touch()
        kept = self._journal.kept(self._listed.name)
        running = self._hash.copy()
        with self._path.open("rb") as file:
            for start in range(0, self._listed.size, PART_BYTES):
                end = min(start + PART_BYTES, self._listed.size)
                if end not in kept:
                    break
                running.update(file.read(end - start))
                if running.hexdigest() != kept[end]:
                    break
                self._hash, self._front = running.copy(), end
        os.truncate(self._path, self._front)
        self.bytes_missing = self._listed.size - self._front
        self._progress.add(self._front)

    def parts(self) -> Iterator[Callable[[], None]]:
        """One task for each part that is not there yet."""
        return (partial(self._fetch, start) for start in range(self._front, self._listed.size, PART_BYTES))

    def digest(self) -> FileDigest:
        """Size and sha256."""
        return FileDigest(name=self._listed.name, size=self._front, sha256=self._hash.hexdigest())

    def _fetch(self, start: int) -> None:
        end = min(start + PART_BYTES, self._listed.size)
        position = start
        with self._path.open("r+b", buffering=0) as file:
            for chunk in self._source.storage.chunks(self._source.uri, start, end - start, self._listed.etag):
                os.pwrite(file.fileno(), chunk, position)
                position += len(chunk)
                self._progress.add(len(chunk))
        if position != end:
            raise Changed(f"{self._source.uri} is shorter than when prepare read it: restore it, or start a new job.")
        self._part_arrived(start)

    def _part_arrived(self, start: int) -> None:
        """Note the part; if no thread hashes this file now, hash all that has arrived in order."""
        with self._lock:
            self._arrived.add(start)
            if self._hashing:
                return
            self._hashing = True
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._front)
            buffer = memoryview(bytearray(READ_BYTES))
            while self._front_arrived():
                self._hash_part(file, buffer)

    def _front_arrived(self) -> bool:
        with self._lock:
            self._hashing = self._front in self._arrived
            self._arrived.discard(self._front)
            return self._hashing

    def _hash_part(self, file: io.FileIO, buffer: memoryview) -> None:
        end = min(self._front + PART_BYTES, self._listed.size)
        while self._front < end:
            count = file.readinto(buffer[: end - self._front])
            if not count:
                raise Changed(f"{self._path} was cut short by somebody else while it was fetched: start again.")
            self._hash.update(buffer[:count])
            self._front += count
        self._journal.note(self._listed.name, end, self._hash.hexdigest())


class InPlaceFile:
    """A weight file on a mounted file system: hashed where it lies, and linked."""

    def __init__(self, source: Source, origin: Path, path: Path, progress: Progress) -> None:
        self._source, self._listed, self._origin, self._path = source, source.listed, origin, path
        self._progress, self._hash = progress, hashlib.sha256()
        self.bytes_missing = 0

    def prepare(self) -> None:
        """Require the file that prepare listed, and link it."""
        found = self._source.storage.head(self._source.uri)
        if (found.size, found.etag) != (self._listed.size, self._listed.etag):
            raise Changed(f"{self._source.uri} was changed since prepare read it: restore it, or start a new job.")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        self._path.symlink_to(self._origin)

    def parts(self) -> Iterator[Callable[[], None]]:
        """One task: the hash."""
        yield self._hash_all

    def digest(self) -> FileDigest:
        """Size and sha256."""
        return FileDigest(name=self._listed.name, size=self._listed.size, sha256=self._hash.hexdigest())

    def _hash_all(self) -> None:
        buffer = memoryview(bytearray(READ_BYTES))
        with self._origin.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                self._hash.update(buffer[:count])
                self._progress.add(count)


def journal_lines(path: Path) -> Iterator[tuple[str, int, str]]:
    """Name, end and sha256 of every whole line of a journal."""
    if not path.exists():
        return
    for line in path.read_text(errors="replace").splitlines():
        try:
            name, end, sha256 = json.loads(line)
        except ValueError:
            continue
        yield str(name), int(end), str(sha256)
