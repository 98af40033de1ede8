"""safetensors headers, read by range requests: names, dtypes and shapes of every weight without the weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeGuard

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.model.tensors import DTYPE_BITS, TensorInfo
from cloister_trainer.storage import ObjectInfo, Storage

FIRST_READ_BYTES = 256 * 1024
"""Read at once: the length field and, for most shards, the whole header."""
MAX_HEADER_BYTES = 100_000_000
"""The bound of the safetensors format."""
READERS = 16
LENGTH_BYTES = 8


@dataclass(frozen=True)
class Header:
    """The header of one safetensors file."""

    name: str
    sha256: str
    """Of the header's JSON as it is stored."""
    tensors: dict[str, TensorInfo]


def read_headers(storage: Storage, files: Iterable[ObjectInfo]) -> list[Header]:
    """The headers of all files, in order of name, read in parallel.

    Raises ModelUnsupported naming the file when a header is damaged or the file's size is not what its header needs.
    """
    ordered = sorted(files, key=lambda info: info.name)
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(lambda info: read_header(storage, info), ordered))


def read_header(storage: Storage, info: ObjectInfo) -> Header:
    """The header of one file, checked against the file's size."""
    first = storage.read_range(info.uri, 0, min(info.size, FIRST_READ_BYTES))
    length = int.from_bytes(first[:LENGTH_BYTES], "little")
    if len(first) < LENGTH_BYTES or length > min(MAX_HEADER_BYTES, info.size - LENGTH_BYTES):
        raise _damaged(
            info, f"it has {info.size:,} bytes, and its first {LENGTH_BYTES} do not give the length of a header"
        )
    text = first[LENGTH_BYTES : LENGTH_BYTES + length]
    if len(text) < length:
        text += storage.read_range(info.uri, LENGTH_BYTES + len(text), length - len(text))
    tensors, data_bytes = _parse(info, text)
    expected = LENGTH_BYTES + length + data_bytes
    if info.size != expected:
        state = "truncated" if info.size < expected else "longer than its header says"
        raise _damaged(info, f"it is {state}: it has {info.size:,} bytes, and its header needs {expected:,}")
    return Header(info.name, hashlib.sha256(text).hexdigest(), tensors)


def header_digest(headers: Iterable[Header]) -> str:
    """sha256 over the headers in order of file name."""
    lines = "".join(f"{header.name} {header.sha256}\n" for header in headers)
    return hashlib.sha256(lines.encode()).hexdigest()


def _parse(info: ObjectInfo, text: bytes) -> tuple[dict[str, TensorInfo], int]:
    """The tensors, and the bytes of data that follow the header."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        raise _damaged(info, "its header is not JSON") from None
    if not isinstance(entries, dict):
        raise _damaged(info, "its header is not a JSON object")
    entries.pop("__metadata__", None)
    tensors, spans = {}, []
    for name, entry in entries.items():
        tensor, span = _entry(info, name, entry)
        tensors[name] = tensor
        spans.append(span)
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise _damaged(info, f"its tensors leave a gap or overlap at byte {start:,} of the data")
        end = stop
    return tensors, end


def _entry(info: ObjectInfo, name: str, entry: object) -> tuple[TensorInfo, tuple[int, int]]:
    fields: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _damaged(info, f"tensor {name} has no dtype that the safetensors format knows")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise _damaged(info, f"tensor {name} has no valid shape and offsets")
    tensor = TensorInfo(dtype, tuple(shape))
    start, stop = offsets
    if (stop - start) * 8 != tensor.parameters * DTYPE_BITS[dtype]:
        raise _damaged(info, f"tensor {name} of shape {list(shape)} and dtype {dtype} has {stop - start:,} bytes")
    return tensor, (start, stop)


def _counts(value: object) -> TypeGuard[list[int]]:
    """Whether the value is a list of integers from 0."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _damaged(info: ObjectInfo, what: str) -> CloisterError:
    return CloisterError(
        FailureReason.MODEL_UNSUPPORTED,
        f"{info.uri} is not a whole safetensors file: {what}. Upload the file again.",
    )
