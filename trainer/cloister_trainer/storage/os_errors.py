"""What the operating system refused, as StorageErrors: which of them it is, and the sentence for whoever can fix it."""

from __future__ import annotations

import errno
import os

from cloister_api.reasons import FailureReason
from cloister_trainer.storage.errors import AccessDenied, Full, MissingObject, StorageError, Unreachable, Unsupported

NOT_OFFERED = (errno.EOPNOTSUPP, errno.ENOSYS)
_UNSUPPORTED = (
    "The file system of {where} does not offer {what} ({said}), which keeps two runs from writing over each other: use "
    "another one, such as ext4, XFS or NFS, or an S3 store."
)
_Answer = tuple[tuple[int, ...], type[StorageError], FailureReason | None, str]
_ANSWERS: tuple[_Answer, ...] = (
    (
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
        Full,
        FailureReason.LOCAL_DISK_FULL,
        "The disk is full while {doing} {where} ({said}): free space there, or give the pod more.",
    ),
    (
        (errno.EACCES, errno.EPERM, errno.EROFS),
        AccessDenied,
        None,
        "{Doing} {where} is not allowed ({said}): correct the permissions.",
    ),
    (
        (errno.ENOENT, errno.ENOTDIR),
        MissingObject,
        None,
        "There is no file {where}: correct the URI or put the file there.",
    ),
    (NOT_OFFERED, Unsupported, None, _UNSUPPORTED),
    (
        (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EBUSY, errno.ENOLCK, errno.EAGAIN),
        StorageError,
        FailureReason.STORAGE_UNAVAILABLE,
        "{Doing} {where} failed ({said}): the machine has run out of something, or the file is in use; try again, or "
        "raise the machine's limits.",
    ),
    (
        (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN),
        Unreachable,
        None,
        "The file system does not answer while {doing} {where} ({said}): check the mount.",
    ),
)
_OTHER: _Answer = (
    (), StorageError, FailureReason.SPEC_INVALID, "{Doing} {where} failed ({said}): correct the URI."
)  # fmt: skip


def translate_os_error(error: OSError, where: str, doing: str) -> StorageError:
    """The StorageError for what the operating system refused while `doing` ("reading", "writing", …) at `where`."""
    _, kind, reason, sentence = next((each for each in _ANSWERS if error.errno in each[0]), _OTHER)
    said = os.strerror(error.errno) if error.errno else type(error).__name__
    what = f"what {doing} takes"
    return kind(sentence.format(where=where, doing=doing, Doing=doing.capitalize(), said=said, what=what), reason)


def unsupported(where: object, what: str, error: OSError) -> Unsupported:
    """The file system lacks something without which two runs could publish over each other."""
    return Unsupported(_UNSUPPORTED.format(where=where, what=what, said=os.strerror(error.errno or 0)))
