"""What a reader hands on: a piece of a file with some hundred rows, not parsed yet."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from cloister_trainer.prepare.problems import Problem

CHUNK_BYTES = 1 << 20
"""A chunk ends with the row that passes this size."""

ROW_BYTES_LIMIT = 64 << 20
"""A row longer than this is refused: it would not be one example, and memory stays bounded."""


class Encoding(Enum):
    """How a chunk's payload holds its rows."""

    LINES = "lines"
    VALUES = "values"
    ARROW = "arrow"


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a file.

    `payload`: bytes of whole lines (LINES), `(line, row, JSON text)` of each element (VALUES), or an Arrow IPC stream
    (ARROW). `first` is the number of its first line, or row for ARROW, counted from 1. `size` in bytes.
    """

    file: str
    encoding: Encoding
    first: int
    payload: bytes | list[tuple[int, int, str]]
    size: int


class FileError(Exception):
    """A file cannot be read any further."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem
