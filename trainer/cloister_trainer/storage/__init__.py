"""One interface for s3://, file:// and pvc://: list, read, write, conditional create and replace, and model folders."""

from cloister_trainer.storage.base import ObjectInfo
from cloister_trainer.storage.errors import (
    AccessDenied,
    AlreadyExists,
    Changed,
    Full,
    InvalidUri,
    MissingBucket,
    MissingObject,
    RequestRefused,
    StorageError,
    Unreachable,
    Unsupported,
)
from cloister_trainer.storage.fetch import FetchedModel, base_digest, fetch_model
from cloister_trainer.storage.storage import Storage, open_storage

__all__ = [
    "AccessDenied",
    "AlreadyExists",
    "Changed",
    "FetchedModel",
    "Full",
    "InvalidUri",
    "MissingBucket",
    "MissingObject",
    "ObjectInfo",
    "RequestRefused",
    "Storage",
    "StorageError",
    "Unreachable",
    "Unsupported",
    "base_digest",
    "fetch_model",
    "open_storage",
]
