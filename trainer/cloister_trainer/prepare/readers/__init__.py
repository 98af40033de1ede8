"""Streams the rows of a file in chunks whose bounds depend on the file alone, so that work on them can be repeated."""

from cloister_trainer.prepare.readers.chunks import Chunk, FileError
from cloister_trainer.prepare.readers.reader import parse_chunk, read_chunks

__all__ = ["Chunk", "FileError", "parse_chunk", "read_chunks"]
