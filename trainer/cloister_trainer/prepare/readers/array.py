"""A .json file: one array whose elements are the rows."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

from cloister_trainer.prepare.problems import RowError
from cloister_trainer.prepare.readers.chunks import CHUNK_BYTES, ROW_BYTES_LIMIT, Chunk, Encoding, FileError
from cloister_trainer.prepare.readers.lines import too_long_number

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def read_array_chunks(file: str, stream: BinaryIO) -> Iterator[Chunk]:
    """Chunks of whole elements, each cut after the element that passes CHUNK_BYTES.

    Raises FileError where the text stops being a JSON array.
    """
    text = _Text(file, stream)
    text.expect("[", "a JSON array, or one JSON object a line")
    values: list[tuple[int, int, str]] = []
    size, row = 0, 1
    while not text.at("]"):
        if row > 1:
            text.expect(",", "a comma or the array's end")
        line, value = text.take_value()
        values.append((line, row, value))
        size, row = size + len(value), row + 1
        if size >= CHUNK_BYTES:
            yield Chunk(file, Encoding.VALUES, values[0][0], values, size)
            values, size = [], 0
    text.expect("]", "the array's end")
    if text.peek():
        raise text.problem(RowError("", "text after the array's end", "the end of the file", "Remove it."))
    if values:
        yield Chunk(file, Encoding.VALUES, values[0][0], values, size)


class _Text:
    """The file's text as far as it is needed, with a position and its line."""

    def __init__(self, file: str, stream: BinaryIO) -> None:
        self._file, self._stream = file, stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._buffer, self._position, self._line, self._ended = "", 0, 1, False

    def peek(self) -> str:
        """The next character that is no white space, or nothing at the file's end."""
        while True:
            space = _SPACE.match(self._buffer, self._position)
            self._advance(space.end() if space else self._position)
            if self._position < len(self._buffer) or not self._more():
                return self._buffer[self._position : self._position + 1]

    def at(self, character: str) -> bool:
        """Whether that character comes next."""
        return self.peek() == character

    def expect(self, character: str, expected: str) -> None:
        """Pass that character."""
        found = self.peek()
        if found != character:
            what = "other text" if found else "the end of the file"
            raise self.problem(RowError("", what, expected, "Correct the file; it must be one JSON array of objects."))
        self._advance(self._position + 1)

    def take_value(self) -> tuple[int, str]:
        """The next JSON value's line and text."""
        self.peek()
        while True:
            try:
                end = _DECODER.raw_decode(self._buffer, self._position)[1]
            except RecursionError:
                raise self.problem(RowError("", "JSON nested too deeply", "a JSON object")) from None
            except json.JSONDecodeError as error:
                if len(self._buffer) - self._position <= ROW_BYTES_LIMIT and self._more():
                    continue
                self._advance(min(error.pos, len(self._buffer)))
                found = f"text that is not JSON ({error.msg})"
                raise self.problem(RowError("", found, "a JSON object")) from None
            except ValueError:
                raise self.problem(too_long_number()) from None
            if end == len(self._buffer) and self._more():
                continue
            line, value = self._line, self._buffer[self._position : end]
            self._advance(end)
            return line, value

    def problem(self, problem: RowError) -> FileError:
        """The problem at the present line."""
        return FileError(problem.at(self._file, f"line {self._line}"))

    def _advance(self, position: int) -> None:
        self._line += self._buffer.count("\n", self._position, position)
        self._position = position

    def _more(self) -> bool:
        """Read on, twice what is still unread, so that a long value is not scanned too often."""
        if self._ended:
            return False
        unread = len(self._buffer) - self._position
        piece = self._stream.read(max(CHUNK_BYTES, unread))
        self._ended = not piece
        try:
            text = self._decoder.decode(piece, final=self._ended)
        except UnicodeDecodeError as error:
            self._advance(len(self._buffer))
            self._line += error.object.count(b"\n", 0, error.start)
            expected = RowError("", "bytes that are not UTF-8", "text in UTF-8", "Convert the file to UTF-8.")
            raise self.problem(expected) from None
        self._buffer = self._buffer[self._position :] + text
        self._position = 0
        return True
