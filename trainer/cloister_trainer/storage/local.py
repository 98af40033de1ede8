"""file:// and pvc:// on a mounted file system. Everything that is written appears whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloister_api.reasons import FailureReason
from cloister_trainer.storage.base import OWN_PREFIX, Location, ObjectInfo, is_own
from cloister_trainer.storage.errors import (
    AccessDenied,
    AlreadyExists,
    Changed,
    InvalidUri,
    MissingBucket,
    MissingObject,
)
from cloister_trainer.storage.os_errors import NOT_OFFERED, translate_os_error, unsupported

HASHED_BYTES = 64 * 1024
"""Files up to this size have their content's hash as ETag, so that replacing a small file is exact."""
COPY_BYTES = 1024 * 1024


class LocalBackend:
    """Files of the whole file system (`pvc_root` None), or read-only ones of the claims mounted under `pvc_root`."""

    def __init__(self, pvc_root: Path | None = None) -> None:
        self._pvc_root = pvc_root

    def path(self, location: Location) -> Path:
        """Where the location lies. For pvc no symbolic link may lead out of the claim."""
        if self._pvc_root is None:
            return Path("/") / location.path
        claim = (self._pvc_root / location.root).resolve()
        if not claim.is_dir():
            raise MissingBucket(
                f"The claim of {location} is not mounted at {claim}: create it, or correct the URI.",
                FailureReason.VOLUME_NOT_FOUND,
            )
        path = (claim / location.path).resolve()
        if not path.is_relative_to(claim):
            raise AccessDenied(f"{location} is a symbolic link out of its claim: put the file itself there.")
        return path

    def list(self, location: Location) -> list[ObjectInfo]:
        """The file itself, or all files below, links followed; sorted by name."""
        path = self.path(location)
        with _os_errors(location, "listing"):
            if path.is_file():
                return [self.head(location)]
            names = sorted(name for name in _names_below(path) if not is_own(name))
            for name in names:
                if not _is_utf8(name):
                    raise InvalidUri(
                        f"The name of a file in {location} is not UTF-8 ({name!a}): rename the file, or move it "
                        "out of the folder."
                    )
            return [self._info(location.below(name), name) for name in names]

    def head(self, location: Location) -> ObjectInfo:
        """The file's size and ETag."""
        return self._info(location, location.name)

    def open(self, location: Location, start: int, length: int | None, etag: str | None) -> io.RawIOBase:
        """A seekable stream over a range of the file."""
        path = self.path(location)
        with _os_errors(location, "reading"):
            file = path.open("rb", buffering=0)
            if etag is not None and etag_of(path) != etag:
                file.close()
                raise Changed(f"{location} was changed since it was listed: start again.")
            return _Range(file, start, length)

    def write(self, location: Location, data: bytes) -> str:
        """Write through a temporary file and a rename."""
        path = self._writable(location)
        with _os_errors(location, "writing"), _temporary(path, data) as temporary, _only_writer(path):
            etag = etag_of(temporary)
            temporary.replace(path)
            _sync_folder(path.parent)
        return etag

    def create(self, location: Location, data: bytes) -> str:
        """Write through a temporary file and a hard link, which fails when the name is taken."""
        path = self._writable(location)
        with _os_errors(location, "writing"), _temporary(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                raise AlreadyExists(f"{location} exists already: it was written by somebody else.") from None
            except OSError as error:
                if error.errno in (errno.EPERM, *NOT_OFFERED):  # EPERM is what exFAT and SMB answer
                    raise unsupported(location, "hard linking", error) from None
                raise
            _sync_folder(path.parent)
            return etag_of(temporary)

    def replace(self, location: Location, data: bytes, etag: str) -> str:
        """Compare and rename while holding the old file's lock."""
        path = self._writable(location)
        with _os_errors(location, "writing"), _temporary(path, data) as temporary, _only_writer(path) as exists:
            if not exists or etag_of(path) != etag:
                raise Changed(f"{location} was changed by somebody else meanwhile: read it again.")
            new = etag_of(temporary)
            temporary.replace(path)
            _sync_folder(path.parent)
        return new

    def upload(self, path: Path, location: Location) -> None:
        """Copy a file in."""
        target = self._writable(location)
        with _os_errors(location, "writing"), path.open("rb") as source, _temporary(target, source) as temporary:
            temporary.replace(target)
            _sync_folder(target.parent)

    def download(self, location: Location, path: Path) -> None:
        """Copy a file out."""
        source = self.path(location)
        with _os_errors(location, "reading"):
            stream = source.open("rb")
        try:
            with stream, _temporary(path, stream) as temporary:
                temporary.replace(path)
        except OSError as error:
            raise translate_os_error(error, str(path), "writing") from None

    def delete(self, location: Location) -> None:
        """Delete one file."""
        path = self._writable(location)
        with _os_errors(location, "deleting"), _only_writer(path) as exists:
            if exists:
                path.unlink()

    def delete_prefix(self, location: Location) -> int:
        """Delete the folder; links in it are deleted, not followed."""
        path = self._writable(location)
        with _os_errors(location, "deleting"):
            count = sum(len(files) for _, _, files in os.walk(path))
            if path.is_dir():
                shutil.rmtree(path)
        return count

    def _info(self, location: Location, name: str) -> ObjectInfo:
        path = self.path(location)
        with _os_errors(location, "reading"):
            if path.is_dir():
                raise MissingObject(f"{location} is a folder: name a file in it.")
            return ObjectInfo(str(location), name, path.stat().st_size, etag_of(path))

    def _writable(self, location: Location) -> Path:
        if self._pvc_root is not None:
            raise AccessDenied(
                f"{location} cannot be written: pvc:// is read-only; give an s3:// URI for what is written.",
                FailureReason.SPEC_INVALID,
            )
        if not location.path:
            raise InvalidUri("file:/// names no file: write file:// and then the path.")
        return self.path(location)


def etag_of(path: Path) -> str:
    """The sha256 of a small file (HASHED_BYTES), `<mtime in ns>-<size>` of a larger one."""
    stat = path.stat()
    if stat.st_size <= HASHED_BYTES:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{stat.st_mtime_ns}-{stat.st_size}"


class _Range(io.RawIOBase):
    """Bytes [start, start + length) of an open file, positions counted from `start`."""

    def __init__(self, file: io.FileIO, start: int, length: int | None) -> None:
        super().__init__()
        size = max(0, os.fstat(file.fileno()).st_size - start)
        self._file, self._start, self._position = file, start, 0
        self._end = size if length is None else min(size, length)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._end}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: memoryview | bytearray) -> int:  # type: ignore[override]
        view = memoryview(buffer)[: max(0, self._end - self._position)]
        count = os.preadv(self._file.fileno(), [view], self._start + self._position) if len(view) else 0
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _is_utf8(name: str) -> bool:
    """Whether a name that the operating system gave can be written down."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _names_below(folder: Path, prefix: str = "", above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Names of all files below, linked folders included; a link to a folder above it is not entered again."""
    if not folder.is_dir():
        return
    here = os.path.realpath(folder)
    if here in above:
        return
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from _names_below(Path(entry.path), f"{prefix}{entry.name}/", above | {here})
        elif entry.is_file():
            yield prefix + entry.name


@contextmanager
def _temporary(path: Path, content: bytes | io.BufferedReader) -> Iterator[Path]:
    """A file beside `path` with the content safe on disk; deleted at the end unless renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{OWN_PREFIX}{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                shutil.copyfileobj(content, file, COPY_BYTES)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _only_writer(path: Path) -> Iterator[bool]:
    """Whether the file exists; while it does, no other writer of ours replaces it.

    The lock is on the file itself and a rename brings another file, so the lock counts only if the name still leads to
    the locked file.
    """
    while True:
        try:
            file = path.open("r+b")
        except FileNotFoundError:
            yield False
            return
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _same_file(file.fileno(), path):
                yield True
                return


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _os_errors(location: Location, doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise translate_os_error(error, str(location), doing) from None
