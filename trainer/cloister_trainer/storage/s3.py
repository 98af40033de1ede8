"""s3:// over boto3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError
from s3transfer.manager import TransferConfig, TransferManager

from cloister_trainer.storage.base import Location, ObjectInfo, is_own
from cloister_trainer.storage.errors import AlreadyExists, Changed, MissingBucket, MissingObject, Unreachable
from cloister_trainer.storage.os_errors import translate_os_error
from cloister_trainer.storage.s3_errors import error_code, http_status, translate
from cloister_trainer.storage.s3_stream import S3Stream

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

PART_BYTES = 16 * 1024 * 1024
"""Size of an upload's part; s3transfer enlarges it for objects above 10,000 parts."""
PARALLEL_REQUESTS = 8
CONFLICT_TRIES = 5
"""Stores answer 409 to one of two conditional writes that meet; the write is then asked again."""


class S3Backend:
    """Objects of any bucket at one endpoint. Threads may share it."""

    def __init__(self, client: S3Client) -> None:
        self._client = client
        self._endpoint = client.meta.endpoint_url

    def list(self, location: Location) -> list[ObjectInfo]:
        """The object itself, or all below; sorted by name."""
        if location.path:
            try:
                return [self.head(location)]
            except MissingObject:
                pass
        return sorted(
            (
                ObjectInfo(str(location.below(name)), name, size, etag)
                for name, size, etag in self._below(location)
                if not name.endswith("/") and not is_own(name)
            ),
            key=lambda each: each.name,
        )

    def head(self, location: Location) -> ObjectInfo:
        """The object's size and ETag."""
        with self._errors(location, "reading"):
            found: Mapping[str, Any]
            try:
                found = self._client.head_object(Bucket=location.root, Key=location.path)
            except ClientError as error:
                if http_status(error) == 404:
                    self._require_bucket(location)
                if http_status(error) != 403:
                    raise
                found = self._head_by_get(location)
        return ObjectInfo(str(location), location.name, found["ContentLength"], found["ETag"].strip('"'))

    def open(self, location: Location, start: int, length: int | None, etag: str | None) -> S3Stream:
        """A seekable stream that goes on after a broken connection."""
        return S3Stream(self._client, location, start, length, etag)

    def write(self, location: Location, data: bytes) -> str:
        """Write; S3 shows an object whole or not at all."""
        with self._errors(location, "writing"):
            return self._put(location, data)

    def create(self, location: Location, data: bytes) -> str:
        """Write with If-None-Match: *."""
        with self._errors(location, "writing"):
            etag = self._put_if(location, data, IfNoneMatch="*")
        if etag is None:
            raise AlreadyExists(f"{location} exists already: it was written by somebody else.")
        return etag

    def replace(self, location: Location, data: bytes, etag: str) -> str:
        """Write with If-Match."""
        with self._errors(location, "writing"):
            new = self._put_if(location, data, IfMatch=f'"{etag}"')
        if new is None:
            raise Changed(f"{location} was changed by somebody else meanwhile: read it again.")
        return new

    def upload(self, path: Path, location: Location) -> None:
        """In parallel parts when the file is large; an interrupted upload is aborted and shows nothing."""
        with self._errors(location, "writing"), TransferManager(self._client, _transfer_config()) as manager:
            manager.upload(str(path), location.root, location.path).result()

    def download(self, location: Location, path: Path) -> None:
        """In parallel ranges of one version, into a temporary name beside `path` first."""
        try:
            with self._errors(location, "reading"), TransferManager(self._client, _transfer_config()) as manager:
                manager.download(location.root, location.path, str(path)).result()
        except MissingObject:
            self.head(location)
            raise
        except S3DownloadFailedError:
            raise Changed(f"{location} was changed while it was read: start again.") from None
        except RetriesExceededError as error:
            cause = type(error.last_exception).__name__
            raise Unreachable(
                f"The connection to the object store at {self._endpoint} breaks again and again while reading "
                f"{location} ({cause}): check the network."
            ) from None
        except OSError as error:
            raise translate_os_error(error, str(path), "writing") from None

    def delete(self, location: Location) -> None:
        """Delete one object."""
        with self._errors(location, "deleting"):
            self._client.delete_object(Bucket=location.root, Key=location.path)

    def delete_prefix(self, location: Location) -> int:
        """Delete all below, one request each: stores disagree on the checksum of a multi-object delete."""
        names = [name for name, _, _ in self._below(location)]
        with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
            for _ in pool.map(self.delete, [location.below(name) for name in names]):
                pass
        return len(names)

    def _below(self, location: Location) -> Iterator[tuple[str, int, str]]:
        """Name, size and ETag of every object below, markers of folders and our own temporaries included."""
        prefix = f"{location.path}/" if location.path else ""
        with self._errors(location, "listing"):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=location.root, Prefix=prefix):
                for each in page.get("Contents", []):
                    yield each["Key"].removeprefix(prefix), each["Size"], each["ETag"].strip('"')

    def _put(self, location: Location, data: bytes, **condition: Any) -> str:
        response = self._client.put_object(Bucket=location.root, Key=location.path, Body=data, **condition)
        return response["ETag"].strip('"')

    def _put_if(self, location: Location, data: bytes, **condition: str) -> str | None:
        """The new ETag, or None when the condition does not hold."""
        for left in reversed(range(CONFLICT_TRIES)):
            try:
                return self._put(location, data, **condition)
            except ClientError as error:
                if http_status(error) == 412 or (error_code(error) == "NoSuchKey" and "IfMatch" in condition):
                    return self._own_write(location, data) if _was_repeated(error) else None
                if http_status(error) != 409 or not left:
                    raise
        raise AssertionError("unreachable")

    def _own_write(self, location: Location, data: bytes) -> str | None:
        """The ETag when the object holds `data`: our first try arrived and only its answer was lost."""
        found = self._client.get_object(Bucket=location.root, Key=location.path)
        return found["ETag"].strip('"') if found["Body"].read() == data else None

    def _require_bucket(self, location: Location) -> None:
        """MissingBucket when a 404 of an answer without a body was about the bucket."""
        try:
            self._client.head_bucket(Bucket=location.root)
        except ClientError as error:
            if http_status(error) == 404:
                raise MissingBucket(
                    f"The bucket s3://{location.root} does not exist at {self._endpoint} (asked for {location}): "
                    "create it or correct the URI."
                ) from None

    def _head_by_get(self, location: Location) -> Mapping[str, Any]:
        """After a 403, whose answer to a HEAD has no body to say why: a GET's says so, or is the object."""
        found: Mapping[str, Any] = self._client.get_object(Bucket=location.root, Key=location.path)
        found["Body"].close()
        return found

    @contextmanager
    def _errors(self, location: Location, doing: str) -> Iterator[None]:
        try:
            yield
        except (ClientError, BotoCoreError) as error:
            raise translate(error, location, doing, self._endpoint) from None


def _was_repeated(error: ClientError) -> bool:
    return int(error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0)) > 0


def _transfer_config() -> TransferConfig:
    return TransferConfig(
        multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_request_concurrency=PARALLEL_REQUESTS
    )
