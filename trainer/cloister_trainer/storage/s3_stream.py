"""A seekable stream over an object that goes on by range after a broken connection."""

from __future__ import annotations

import io
import random
import time
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError
from botocore.response import StreamingBody

from cloister_trainer.storage.base import Location
from cloister_trainer.storage.errors import Changed, StorageError, Unsupported
from cloister_trainer.storage.s3_errors import http_status, translate

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from types_boto3_s3 import S3Client

MAX_BREAKS = 6
"""Breaks in a row, without a byte between them, after which the stream gives up."""
MAX_WAIT_S = 10.0


class S3Stream(io.RawIOBase):
    """Bytes [start, start + length) of an object, positions counted from `start`.

    The ETag seen first (or given) goes with every later request, so that the bytes never come from two versions.
    """

    def __init__(self, client: S3Client, location: Location, start: int, length: int | None, etag: str | None) -> None:
        super().__init__()
        self._client, self._location, self._start, self._length = client, location, start, length
        self._etag = etag
        self._position = self._end = 0
        self._body: StreamingBody | None = None
        self._request()

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True; a seek costs a new request at the next read."""
        return True

    def tell(self) -> int:
        """Bytes from the start of the range."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position; the next read asks for the rest from there."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._end}[whence]
        position = max(0, base + offset)
        if position != self._position:
            self._drop()
            self._position = position
        return position

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Up to len(buffer) bytes; 0 at the end. Unreachable, Changed, MissingObject when it cannot go on."""
        view = memoryview(buffer).cast("B")
        chunk = self.read(len(view))
        view[: len(chunk)] = chunk
        return len(chunk)

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes as urllib3 has them, without a copy; b"" at the end. Raises what readinto raises."""
        if size < 0:
            return self.readall()
        breaks = 0
        while size and self._position < self._end:
            body = self._body or self._request()
            try:
                chunk: bytes = body.read(min(size, self._end - self._position))
                if not chunk:
                    raise IncompleteReadError(actual_bytes=self._position, expected_bytes=self._end)
            except (HTTPClientError, IncompleteReadError) as error:
                self._drop()
                breaks += 1
                if breaks == MAX_BREAKS:
                    raise self._translated(error) from None
                _wait(breaks)
                continue
            self._position += len(chunk)
            return chunk
        return b""

    def close(self) -> None:
        """Drop the connection."""
        self._drop()
        super().close()

    def _request(self) -> StreamingBody:
        """Ask for the rest from the position. botocore retries what fails before the first byte."""
        first = self._start + self._position
        last = "" if self._length is None else str(self._start + self._length - 1)
        match: dict[str, Any] = {"IfMatch": f'"{self._etag}"'} if self._etag else {}
        try:
            response = self._client.get_object(
                Bucket=self._location.root, Key=self._location.path, Range=f"bytes={first}-{last}", **match
            )
        except ClientError as error:
            if http_status(error) == 412:
                raise Changed(f"{self._location} was changed while it was read: start again.") from None
            if http_status(error) == 416:
                return self._take(StreamingBody(io.BytesIO(), 0), 0)
            raise self._translated(error) from None
        except BotoCoreError as error:
            raise self._translated(error) from None
        whole = response["ResponseMetadata"]["HTTPStatusCode"] != 206
        if whole and (first > 0 or (self._length is not None and response["ContentLength"] > self._length)):
            response["Body"].close()
            raise Unsupported(f"The object store ignores ranges (while reading {self._location}): use another store.")
        self._etag = response["ETag"].strip('"')
        return self._take(response["Body"], response["ContentLength"])

    def _take(self, body: StreamingBody, size: int) -> StreamingBody:
        """Go on with a body of `size` bytes; the object may end before the range does."""
        self._body = body
        self._end = self._position + (size if self._length is None else min(size, self._length - self._position))
        return body

    def _translated(self, error: Exception) -> StorageError:
        return translate(error, self._location, "reading", self._client.meta.endpoint_url)

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None


def _wait(breaks: int) -> None:
    """A random part of 1, 2, 4, … MAX_WAIT_S seconds: many readers must not come back at one moment."""
    time.sleep(random.uniform(0, min(MAX_WAIT_S, 2.0 ** (breaks - 1))))  # noqa: S311
