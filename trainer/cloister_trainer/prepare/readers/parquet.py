"""Parquet files, read by ranges."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cloister_trainer.prepare.files import DataFile
from cloister_trainer.prepare.problems import RowError
from cloister_trainer.prepare.readers.chunks import Chunk, Encoding, FileError
from cloister_trainer.storage import Storage

BATCH_ROWS = 512
BUFFER_BYTES = 4 << 20


def read_parquet_chunks(storage: Storage, file: DataFile) -> Iterator[Chunk]:
    """Record batches of BATCH_ROWS rows as Arrow IPC streams."""
    row = 1
    try:
        with (
            storage.open(file.uri, etag=file.etag) as stream,
            pq.ParquetFile(stream, buffer_size=BUFFER_BYTES) as parquet,
        ):
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS):
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, batch.schema) as writer:
                    writer.write_batch(batch)
                payload = sink.getvalue().to_pybytes()
                yield Chunk(file.uri, Encoding.ARROW, row, payload, len(payload))
                row += batch.num_rows
    except pa.ArrowException as error:
        found = f"bytes that are not Parquet ({type(error).__name__})"
        problem = RowError("", found, "a Parquet file", "Write the file again.")
        raise FileError(problem.at(file.uri, "")) from error


def parse_arrow(payload: bytes, first: int) -> Iterator[tuple[str, Any]]:
    """Each row with its place. Nulls inside a row are left out: Arrow writes one for every key that a struct lacks."""
    with pa.ipc.open_stream(payload) as reader:
        for number, row in enumerate(reader.read_all().to_pylist(), start=first):
            yield f"row {number}", {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
