"""What can go wrong with a store: one class for each thing that somebody would do something different about."""

# ruff: noqa: N818 - callers read `except MissingObject` as a sentence

from __future__ import annotations

from typing import ClassVar

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason


class StorageError(CloisterError):
    """A store did not do what was asked. The message names the URI and what to do, and never holds a credential."""

    default_reason: ClassVar[FailureReason] = FailureReason.STORAGE_UNAVAILABLE

    def __init__(self, message: str, reason: FailureReason | None = None) -> None:
        super().__init__(reason or self.default_reason, message)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.message, self.reason))


class InvalidUri(StorageError):
    """The URI cannot name anything: a wrong scheme, no bucket, `..` in its path."""

    default_reason = FailureReason.SPEC_INVALID


class AccessDenied(StorageError):
    """No credentials, wrong ones, or ones that may not do this; or the place is read-only."""

    default_reason = FailureReason.STORAGE_ACCESS_DENIED


class MissingBucket(StorageError):
    """The bucket, or the claim, does not exist."""

    default_reason = FailureReason.SPEC_INVALID


class MissingObject(StorageError):
    """The bucket exists, the object does not."""

    default_reason = FailureReason.SPEC_INVALID


class RequestRefused(StorageError):
    """The store takes the request for a wrong one, so that asking again cannot help."""

    default_reason = FailureReason.SPEC_INVALID


class Unreachable(StorageError):
    """The store does not answer, or answers that it cannot now."""

    default_reason = FailureReason.STORAGE_UNAVAILABLE


class Full(StorageError):
    """No space: STORAGE_FULL for a store, LOCAL_DISK_FULL for a local disk."""

    default_reason = FailureReason.STORAGE_FULL


class Unsupported(StorageError):
    """The store cannot do what Cloister needs, which is to honour If-None-Match and If-Match."""

    default_reason = FailureReason.STORAGE_UNSUPPORTED


class AlreadyExists(StorageError):
    """A conditional create found the object there."""

    default_reason = FailureReason.OUTPUT_EXISTS


class Changed(StorageError):
    """The object is not the one with the expected ETag any more."""

    default_reason = FailureReason.INTERNAL
