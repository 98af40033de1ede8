"""The files of a dataset source."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.storage import MissingBucket, MissingObject, Storage


class FileKind(StrEnum):
    """How a file holds rows; the value is the end of its name."""

    JSON_LINES = ".jsonl"
    JSON = ".json"
    PARQUET = ".parquet"


@dataclass(frozen=True)
class DataFile:
    """A file with rows, as its store lists it."""

    uri: str
    kind: FileKind
    size: int
    etag: str


def list_files(storage: Storage, uri: str) -> list[DataFile]:
    """The data files at `uri` (one object) or under it (a prefix), by name.

    Raises CloisterError DatasetNotFound when there are none.
    """
    try:
        found = storage.list(uri)
    except (MissingObject, MissingBucket) as error:
        raise CloisterError(FailureReason.DATASET_NOT_FOUND, error.message) from error
    files = [
        DataFile(entry.uri, kind, entry.size, entry.etag)
        for entry in found
        if (kind := next((kind for kind in FileKind if entry.uri.lower().endswith(kind)), None))
    ]
    if not files:
        others = f" ({len(found)} file{'s' * (len(found) > 1)} with another ending)" if found else ""
        raise CloisterError(
            FailureReason.DATASET_NOT_FOUND,
            f"There is no .jsonl, .json or .parquet file at {uri}{others}. Correct the URI, or upload the dataset.",
        )
    return files
