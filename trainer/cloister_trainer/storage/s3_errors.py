"""botocore's errors as StorageErrors: which of them it is, and the sentence for whoever can fix it.

A server's own message is never quoted, because it may repeat headers of the request; its error code is.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
)

from cloister_trainer.storage.base import Location
from cloister_trainer.storage.errors import (
    AccessDenied,
    Full,
    MissingBucket,
    MissingObject,
    RequestRefused,
    StorageError,
    Unreachable,
    Unsupported,
)

_DOING = "(while {doing} {location}; {code})"


@dataclass(frozen=True)
class _Answer:
    """What an error answer with one of these codes, or else with one of these HTTP statuses, means."""

    codes: frozenset[str]
    statuses: Collection[int]
    error: type[StorageError]
    sentence: str


def _answer(error: type[StorageError], sentence: str, *codes: str, statuses: Collection[int] = ()) -> _Answer:
    return _Answer(frozenset(codes), statuses, error, sentence)


_ANSWERS = (
    _answer(
        MissingBucket,
        "The bucket {bucket} does not exist at {endpoint} (while {doing} {location}): create it or correct the URI.",
        "NoSuchBucket",
    ),
    _answer(
        MissingBucket,
        f"The bucket {{bucket}} is not in the region that was asked at {{endpoint}} {_DOING}: set AWS_REGION.",
        "PermanentRedirect", "AuthorizationHeaderMalformed", statuses=range(301, 309),
    ),
    _answer(
        MissingObject,
        "There is no object {location}: correct the URI or upload it.",
        "NoSuchKey", statuses=range(404, 405),
    ),
    _answer(
        AccessDenied,
        f"The object store does not know the access key {_DOING}: correct AWS_ACCESS_KEY_ID.",
        "InvalidAccessKeyId",
    ),
    _answer(
        AccessDenied,
        f"The object store refused the signature {_DOING}: the secret key does not belong to the access key; "
        "correct AWS_SECRET_ACCESS_KEY.",
        "SignatureDoesNotMatch",
    ),
    _answer(
        AccessDenied,
        f"The object store refused the session token {_DOING}: get a new one.",
        "ExpiredToken", "InvalidToken", "TokenRefreshRequired",
    ),
    _answer(
        Unreachable,  # whoever's clock it is, the keys are right, and clocks are set without a change of the job
        f"The object store at {{endpoint}} refused the request's time {_DOING}: this machine's clock says {{now}}; set "
        "it, or the store's.",
        "RequestTimeTooSkewed",
    ),
    _answer(
        AccessDenied,
        f"The object store refused access {_DOING}: correct the credentials, or allow them this on {{bucket}}.",
        "AccessDenied", statuses=range(401, 404),
    ),
    _answer(
        Full,
        f"The object store is full {_DOING}: free space there or raise its quota.",
        "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", statuses=range(507, 508),
    ),
    _answer(
        Unsupported,
        f"The object store cannot do this {_DOING}: use a store and version from the documented list.",
        "NotImplemented", statuses=range(501, 502),
    ),
    _answer(
        Unreachable,
        f"The object store at {{endpoint}} cannot answer now {_DOING}: check its health and its free space.",
        "SlowDown", "RequestTimeout", "Throttling", "TooManyRequests", "IncompleteBody", "BadDigest",
        statuses=(408, 409, 429, *range(500, 600)),
    ),
    _answer(
        RequestRefused,
        f"The store at {{endpoint}} does not understand the request {_DOING}: check http or https, host and port in "
        "AWS_ENDPOINT_URL_S3, and the session token where there is one.",
        statuses=range(400, 401),
    ),
    _answer(
        RequestRefused,
        f"The object store refused the request {_DOING}: correct the URI, or the store's configuration.",
        statuses=range(405, 500),
    ),
    _answer(
        StorageError,
        f"The object store refused the request {_DOING}: check the URI and the store.",
        statuses=range(600),
    ),
)  # fmt: skip


def error_code(error: ClientError) -> str:
    """The store's error code; the HTTP status for a response without a body."""
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def http_status(error: ClientError) -> int:
    """The HTTP status, 0 when there is none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def translate(error: Exception, location: Location, doing: str, endpoint: str) -> StorageError:
    """The StorageError for what botocore raised while `doing` ("reading", "writing", …) at `location`."""
    if isinstance(error, ClientError):
        return _from_response(error, location, doing, endpoint)
    if isinstance(error, (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)):
        return AccessDenied(
            f"There are no credentials for {doing} {location}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    if isinstance(error, SSLError):
        return Unreachable(
            f"The certificate of the object store at {endpoint} was refused while {doing} {location}: "
            "give the CA that signed it in AWS_CA_BUNDLE, or in the admin's storage.ca."
        )
    if isinstance(error, BotoCoreError):
        return Unreachable(
            f"The object store at {endpoint} does not answer while {doing} {location} ({type(error).__name__}): "
            "check the endpoint's address, the store, and the network between."
        )
    raise error


def _from_response(error: ClientError, location: Location, doing: str, endpoint: str) -> StorageError:
    code, status = error_code(error), http_status(error)
    by_code = (each for each in _ANSWERS if code in each.codes)
    answer = next(by_code, None) or next(each for each in _ANSWERS if status in each.statuses)
    bucket = f"{location.scheme}://{location.root}"
    now = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
    sentence = answer.sentence.format(
        bucket=bucket, endpoint=endpoint, doing=doing, location=location, code=code, now=now
    )
    return answer.error(sentence)
