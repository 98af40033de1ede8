"""JSON lines: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from cloister_trainer.prepare.problems import RowError
from cloister_trainer.prepare.readers.chunks import CHUNK_BYTES, ROW_BYTES_LIMIT, Chunk, Encoding, FileError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_line_chunks(file: str, stream: BinaryIO) -> Iterator[Chunk]:
    """Chunks of whole lines, each cut after the line that passes CHUNK_BYTES."""
    buffer, line = bytearray(), 1
    while True:
        cut = buffer.find(b"\n", CHUNK_BYTES - 1) + 1 if len(buffer) >= CHUNK_BYTES else 0
        if cut:
            payload = bytes(buffer[:cut])
            del buffer[:cut]
            yield Chunk(file, Encoding.LINES, line, payload, cut)
            line += payload.count(b"\n")
            continue
        if len(buffer) > ROW_BYTES_LIMIT:
            last = line + buffer.count(b"\n")
            raise FileError(_too_long().at(file, f"line {last}"))
        piece = stream.read(CHUNK_BYTES)
        if not piece:
            break
        buffer += piece
    if buffer:
        yield Chunk(file, Encoding.LINES, line, bytes(buffer), len(buffer))


def parse_lines(payload: bytes, first: int) -> Iterator[tuple[str, Any]]:
    """Each line that is not blank with its place and its value, or a RowError in place of the value."""
    if first == 1:
        payload = payload.removeprefix(BYTE_ORDER_MARK)
    try:
        for number, line in enumerate(payload.decode("utf-8").split("\n"), start=first):
            if line.strip():
                yield f"line {number}", parse_json(line)
    except UnicodeDecodeError:
        for number, raw in enumerate(payload.split(b"\n"), start=first):
            if raw.strip():
                yield f"line {number}", _parse_bytes(raw)


def parse_json(text: str) -> Any:
    """A JSON value, or a RowError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return not_json(error)
    except ValueError:
        return too_long_number()
    except RecursionError:
        return RowError("", "JSON nested too deeply", "a JSON object")


def not_json(error: json.JSONDecodeError) -> RowError:
    """What the parser says, which holds no content, and where in the line."""
    return RowError("", f"text that is not JSON ({error.msg} at character {error.colno})", "one JSON object")


def too_long_number() -> RowError:
    """Python reads no integer of more than 4,300 digits (sys.set_int_max_str_digits)."""
    return RowError("", "a number with thousands of digits", "numbers that fit 64 bits, or strings")


def _parse_bytes(line: bytes) -> Any:
    try:
        return parse_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        found = f"bytes that are not UTF-8 (at byte {error.start + 1} of the line)"
        return RowError("", found, "text in UTF-8", "Convert the file to UTF-8.")


def _too_long() -> RowError:
    return RowError("", f"a row longer than {ROW_BYTES_LIMIT >> 20} MiB", "one JSON object a line")
