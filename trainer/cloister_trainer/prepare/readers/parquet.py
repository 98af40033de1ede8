"""Parquet files, read by ranges."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cloister_trainer.prepare.files import DataFile
from cloister_trainer.prepare.problems import RowError, Undecodable
from cloister_trainer.prepare.readers.chunks import CHUNK_BYTES, Chunk, Encoding, FileError
from cloister_trainer.storage import Storage

BATCH_ROWS = 512
BUFFER_BYTES = 4 << 20

_UNDECODABLE = (ValueError, OverflowError, LookupError)
"""What pyarrow raises for text that is not UTF-8, times that datetime cannot hold, and unknown time zones."""


def read_parquet_chunks(storage: Storage, file: DataFile) -> Iterator[Chunk]:
    """Record batches of at most BATCH_ROWS rows as Arrow IPC streams. Raises FileError where the file is damaged."""
    row = 1
    try:
        with (
            storage.open(file.uri, etag=file.etag) as stream,
            pq.ParquetFile(stream, buffer_size=BUFFER_BYTES) as parquet,
        ):
            for batch in _small_batches(parquet):
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, batch.schema) as writer:
                    writer.write_batch(batch)
                payload = sink.getvalue().to_pybytes()
                yield Chunk(file.uri, Encoding.ARROW, row, payload, len(payload))
                row += batch.num_rows
    except UnicodeDecodeError as error:
        problem = RowError("", "a column name that is not UTF-8", "names in UTF-8", "Write the file again.")
        raise FileError(problem.at(file.uri, "")) from error
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        found = f"bytes that are not Parquet ({type(error).__name__})"
        problem = RowError("", found, "a Parquet file", "Write the file again.")
        raise FileError(problem.at(file.uri, f"after row {row - 1}" if row > 1 else "")) from error


def _small_batches(parquet: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """Batches of BATCH_ROWS rows, those with long rows cut so that each piece has about CHUNK_BYTES."""
    for batch in parquet.iter_batches(batch_size=BATCH_ROWS):
        rows = max(1, batch.num_rows * CHUNK_BYTES // max(CHUNK_BYTES, batch.nbytes))
        for start in range(0, batch.num_rows, rows):
            yield batch.slice(start, rows)


def parse_arrow(payload: bytes, first: int) -> Iterator[tuple[str, Any]]:
    """Each row with its place. Nulls inside a row are left out: Arrow writes one for every key that a struct lacks."""
    with pa.ipc.open_stream(payload) as reader:
        table = reader.read_all()
    columns = {name: _values(table.column(at)) for at, name in enumerate(table.column_names)}
    for index in range(table.num_rows):
        row = {name: _without_nulls(values[index]) for name, values in columns.items()}
        yield f"row {first + index}", row


def _values(column: pa.ChunkedArray) -> list[Any]:
    """A column's values; one by one when Python has no form of some of them, as of bytes that should be UTF-8."""
    try:
        values: list[Any] = column.to_pylist()
    except _UNDECODABLE:
        values = [_value(scalar) for scalar in column]
    return values


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return Undecodable("text that is not UTF-8")
    except _UNDECODABLE as error:
        return Undecodable(f"a value of type {scalar.type} that cannot be read ({type(error).__name__})")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
