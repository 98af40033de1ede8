"""current.json: the one object under output.uri that changes, and the moment at which an adapter is published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from cloister_api.base import ApiModel
from cloister_api.errors import CloisterError
from cloister_api.layout import OutputLayout
from cloister_api.reasons import FailureReason
from cloister_trainer.storage import AlreadyExists, Changed, MissingObject, Storage


class Pointer(ApiModel):
    """Which folder under output.uri is the adapter."""

    version: Literal[1] = 1
    uid: str
    """The run that made it."""
    folder: str
    """Name of the folder below output.uri, so that a copied or mirrored prefix stays valid."""
    manifest_digest: str
    """sha256 of the folder's manifest.json."""

    def encode(self) -> bytes:
        """The bytes of current.json."""
        return (self.model_dump_json(by_alias=True, indent=2) + "\n").encode()


@dataclass(frozen=True)
class StoredPointer:
    """current.json as it lies in the store."""

    pointer: Pointer
    etag: str


class LostRaceError(Exception):
    """Somebody else moved the pointer since it was read."""


def read_pointer(storage: Storage, output: OutputLayout) -> StoredPointer | None:
    """current.json with the ETag that belongs to what was read, or None where nothing has been published.

    Raises CloisterError(OutputExists) when the object is not a pointer of ours.
    """
    while True:
        try:
            before = storage.head(output.pointer).etag
            data = storage.read(output.pointer)
            unchanged = storage.head(output.pointer).etag == before
        except MissingObject:
            return None
        if unchanged:
            return StoredPointer(_parse(output.pointer, data), before)


def _parse(uri: str, data: bytes) -> Pointer:
    try:
        return Pointer.model_validate_json(data)
    except ValidationError as error:
        raise CloisterError(
            FailureReason.OUTPUT_EXISTS,
            f"{uri} was not written by Cloister: expected a JSON object with version 1, uid, folder and "
            "manifestDigest. Choose another output.uri, or remove the object if nobody reads it.",
        ) from error


def move_pointer(storage: Storage, output: OutputLayout, pointer: Pointer, replaces: StoredPointer | None) -> None:
    """Publish: create current.json, or replace exactly the one that was read.

    Raises LostRaceError when it is no longer what was read. A write that the store made but answered with an error
    counts as made.
    """
    try:
        if replaces is None:
            storage.create(output.pointer, pointer.encode())
        else:
            storage.replace(output.pointer, pointer.encode(), replaces.etag)
    except (AlreadyExists, Changed, MissingObject) as error:
        now = read_pointer(storage, output)
        if now is None or now.pointer != pointer:
            raise LostRaceError from error
