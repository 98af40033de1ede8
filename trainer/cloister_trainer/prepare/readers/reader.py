"""One reader for all kinds of files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from cloister_trainer.prepare.files import DataFile, FileKind
from cloister_trainer.prepare.problems import no_rows
from cloister_trainer.prepare.readers.array import read_array_chunks
from cloister_trainer.prepare.readers.chunks import Chunk, Encoding, FileError
from cloister_trainer.prepare.readers.lines import BYTE_ORDER_MARK, parse_json, parse_lines, read_line_chunks
from cloister_trainer.storage import Storage

_PEEKED_BYTES = 4096


def read_chunks(storage: Storage, file: DataFile) -> Iterator[Chunk]:
    """A file's rows in chunks.

    A .json file may also hold one object a line. Raises FileError for a file that is empty or cannot be read on.
    """
    if file.size == 0:
        raise FileError(no_rows("an empty file").at(file.uri, ""))
    chunks = 0
    for chunk in _read(storage, file):
        chunks += 1
        yield chunk
    if not chunks:
        raise FileError(no_rows("no row").at(file.uri, ""))


def parse_chunk(chunk: Chunk) -> Iterator[tuple[str, Any]]:
    """Each row's place in the file (`line 3`) and its value, or a RowError in place of the value."""
    match chunk.encoding:
        case Encoding.LINES:
            yield from parse_lines(cast(bytes, chunk.payload), chunk.first)
        case Encoding.VALUES:
            for line, row, text in cast(list[tuple[int, int, str]], chunk.payload):
                yield f"line {line} (row {row})", parse_json(text)
        case Encoding.ARROW:
            from cloister_trainer.prepare.readers.parquet import parse_arrow

            yield from parse_arrow(cast(bytes, chunk.payload), chunk.first)


def _read(storage: Storage, file: DataFile) -> Iterator[Chunk]:
    if file.kind == FileKind.PARQUET:
        from cloister_trainer.prepare.readers.parquet import read_parquet_chunks

        yield from read_parquet_chunks(storage, file)
        return
    with storage.open(file.uri, etag=file.etag) as stream:
        if file.kind == FileKind.JSON_LINES:
            yield from read_line_chunks(file.uri, stream)
            return
        head = stream.read(_PEEKED_BYTES)
        rest = cast(BinaryIO, _Joined(head, stream))
        if head.removeprefix(BYTE_ORDER_MARK).lstrip()[:1] == b"{":
            yield from read_line_chunks(file.uri, rest)
        else:
            yield from read_array_chunks(file.uri, rest)


class _Joined(io.RawIOBase):
    """Bytes that were already read, then the rest of the stream."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self._head, self._stream = head, stream

    def read(self, size: int = -1) -> bytes:
        head, self._head = self._head, b""
        return head or self._stream.read(size)
