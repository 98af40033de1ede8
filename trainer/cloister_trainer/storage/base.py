"""What the stores have in common: locations, listings, and the operations that each of them offers."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cloister_api.text import masked
from cloister_trainer.storage.errors import InvalidUri

OWN_PREFIX = ".cloister-"
"""Temporary objects and files of ours begin with this and are left out of listings."""

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Location:
    """A parsed URI: s3://<root>/<path>, pvc://<root>/<path>, or file:///<path>. `path` has no slash at either end."""

    scheme: str
    root: str
    path: str

    def __str__(self) -> str:
        return (
            f"{self.scheme}://{self.root}/{self.path}" if self.path or not self.root else f"{self.scheme}://{self.root}"
        )

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    def below(self, name: str) -> Location:
        """The location `name` under this one."""
        return Location(self.scheme, self.root, f"{self.path}/{name}" if self.path else name)


def parse_uri(uri: str) -> Location:
    """The parts of a URI, taken literally (nothing is percent-decoded).

    InvalidUri for an unknown scheme, a missing bucket, claim or absolute path, control characters, and for `.`, `..` or
    an empty part in the path: no URI reaches above its root.
    """
    scheme, separator, rest = uri.partition("://")
    shown = masked(uri)
    if not separator or scheme not in ("s3", "pvc", "file"):
        raise InvalidUri(
            f"{shown!r} is not a URI of a store: expected s3://bucket/path, pvc://claim/path or file:///path."
        )
    root, slash, path = rest.partition("/")
    if scheme == "file" and (root or not slash):
        raise InvalidUri(
            f"{shown!r} names no absolute path: write file:// and then the path, as in file:///data/train."
        )
    if scheme == "s3" and not _BUCKET.fullmatch(root):
        raise InvalidUri(f"{shown!r} names no bucket: expected s3://bucket/path.")
    if scheme == "pvc" and not _CLAIM.fullmatch(root):
        raise InvalidUri(f"{shown!r} names no claim: expected pvc://claim/path.")
    path = path.strip("/")
    if path and any(part in ("", ".", "..") for part in path.split("/")):
        raise InvalidUri(f"{shown!r} holds '.', '..' or '//' in its path: write the path without them.")
    if _CONTROL.search(uri):
        raise InvalidUri(f"{shown!r} holds control characters: write it without them.")
    return Location(scheme, root, path)


@dataclass(frozen=True)
class ObjectInfo:
    """An object as its store lists it."""

    uri: str
    name: str
    """Relative to the listed prefix; for a single object its last part."""
    size: int
    """Bytes."""
    etag: str
    """The store's ETag without quotes. For file and pvc a value that changes with the content; see local.etag_of."""


class Backend(Protocol):
    """A kind of store. Every method raises StorageError's subclasses with the location in the sentence."""

    def list(self, location: Location) -> list[ObjectInfo]:
        """The object itself, or all below; sorted by name, our own temporary ones left out."""

    def head(self, location: Location) -> ObjectInfo:
        """The object's size and ETag; MissingObject."""

    def open(self, location: Location, start: int, length: int | None, etag: str | None) -> io.RawIOBase:
        """A seekable stream over bytes [start, start + length); Changed when the ETag differs."""

    def write(self, location: Location, data: bytes) -> str:
        """Write atomically; the ETag."""

    def create(self, location: Location, data: bytes) -> str:
        """Write if nothing is there; AlreadyExists."""

    def replace(self, location: Location, data: bytes, etag: str) -> str:
        """Write if the ETag is still this one; Changed."""

    def upload(self, path: Path, location: Location) -> None:
        """Write a local file's content atomically."""

    def download(self, location: Location, path: Path) -> None:
        """Write the object into a local file, atomically."""

    def delete(self, location: Location) -> None:
        """Delete one object; a missing one is fine."""

    def delete_prefix(self, location: Location) -> int:
        """Delete all below; how many objects that were."""


def is_own(name: str) -> bool:
    """Whether a listed name is a temporary of ours."""
    return name.rpartition("/")[2].startswith(OWN_PREFIX)
