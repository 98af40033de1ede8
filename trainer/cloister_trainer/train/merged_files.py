"""The merged model's files: the base's again, with adapted tensors changed, each tensor read back and compared.

Names, shapes and types stay, so each file keeps its header and each tensor its place. Memory holds a few pieces of one
tensor at a time, however large the tensor and its file are: files are read and not mapped, since mapped pages count as
the process's own.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.model.families import FAMILIES
from cloister_trainer.model.tensors import TensorInfo
from cloister_trainer.records import FileDigest
from cloister_trainer.train.merge import Change, Delta, change_of
from cloister_trainer.train.targets import read_header, tensors_in

PIECE_BYTES = 4 * 2**20
_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Changes = Callable[[str], Change | None]


@dataclass(frozen=True)
class Written:
    """One part of a merged file: a tensor, or the header."""

    what: str
    size: int
    sha256: str
    """Of the bytes that were meant: computed ones, or the base's."""


def write_merged(
    base: Path, weight_files: list[FileDigest], model_type: str, deltas: Mapping[str, Delta], folder: Path
) -> Iterator[FileDigest]:
    """Write the merged weights of the model folder `base` to `folder`, yielding each file when it is whole and right.

    `weight_files` are the base's, as they were when they were fetched. The caller may delete a file before it asks for
    the next one. Raises CloisterError (ADAPTER_INVALID) for a base file that is not what was fetched, a merged value
    that is not finite, and a file that reads back different from what was written.
    """

    def changes(tensor: str) -> Change | None:
        return change_of(tensor, FAMILIES[model_type], deltas)

    for file in weight_files:
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        yield check_file(path, file.name, write_file(base, file, path, changes))


def write_file(base: Path, file: FileDigest, path: Path, changes: Changes) -> list[Written]:
    """Write one merged file; what was written, in the file's order."""
    if not (base / file.name).is_file() or (base / file.name).stat().st_size != file.size:
        raise _not_what_was_fetched(file.name)
    header, entries = read_header(base / file.name)
    infos = tensors_in(base, [file.name])
    written, source_digest = [], hashlib.sha256()
    with (base / file.name).open("rb") as source, path.open("wb") as out:

        def write(what: str, size: int, pieces: Iterator[tuple[bytes, bytes]]) -> None:
            digest = hashlib.sha256()
            for before, after in pieces:
                source_digest.update(before)
                digest.update(after)
                out.write(after)
            written.append(Written(what, size, digest.hexdigest()))

        write("the header", len(header), _copied(source, len(header)))
        for name, (start, end) in sorted(entries.items(), key=lambda item: item[1]):
            change = changes(name)
            pieces = _copied(source, end - start) if change is None else _merged(source, name, infos[name], change)
            write(f"tensor {name}", end - start, pieces)
        _settle(out)
    if source_digest.hexdigest() != file.sha256:
        raise _not_what_was_fetched(file.name)
    return written


def check_file(path: Path, name: str, written: list[Written]) -> FileDigest:
    """Read a merged file again, as it lies on the disk, and compare each part with what was meant."""
    whole, size = hashlib.sha256(), sum(part.size for part in written)
    with path.open("rb") as file:
        for part in written:
            digest = hashlib.sha256()
            for piece, _ in _copied(file, part.size):
                digest.update(piece)
                whole.update(piece)
            if digest.hexdigest() != part.sha256:
                raise _reads_back_different(name, part.what)
        if file.read(1):
            raise _reads_back_different(name, "its length")
    return FileDigest(name=name, size=size, sha256=whole.hexdigest())


def _settle(out: BinaryIO) -> None:
    """Bring a file to the disk and out of the page cache: whoever reads it next has what lies on the disk."""
    out.flush()
    os.fsync(out.fileno())
    os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _copied(source: BinaryIO, length: int) -> Iterator[tuple[bytes, bytes]]:
    """The next `length` bytes, as they are and stay; fewer where the file ends before."""
    while length > 0 and (piece := source.read(min(length, PIECE_BYTES))):
        yield piece, piece
        length -= len(piece)


def _merged(source: BinaryIO, name: str, info: TensorInfo, change: Change) -> Iterator[tuple[bytes, bytes]]:
    """The next bytes of the base, which are the tensor `name`, and what they become."""
    *matrices, rows, columns = info.shape
    dtype = _TYPES[info.dtype]
    step = max(1, PIECE_BYTES // (columns * dtype.itemsize))
    for matrix in range(prod(matrices)):
        for row in range(0, rows, step):
            shape = (min(step, rows - row), columns)
            before = source.read(prod(shape) * dtype.itemsize)
            weight = torch.frombuffer(bytearray(before), dtype=dtype).view(shape)
            merged = change.applied(weight, matrix, row)
            if not merged.isfinite().all():
                raise CloisterError(
                    FailureReason.ADAPTER_INVALID,
                    f"Merged into the base, tensor {name} has values that are not finite in its type "
                    f"({str(dtype).removeprefix('torch.')}). Leave output.mergedModel away and serve the adapter "
                    "beside its base, or train again with a lower training.learningRate.",
                )
            yield before, _raw(merged)


def _raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _not_what_was_fetched(file: str) -> CloisterError:
    return CloisterError(
        FailureReason.ADAPTER_INVALID,
        f"{file} of the base model is no longer what was fetched, so nothing can be merged into it. Restore the "
        "model's folder if somebody changed it during training, or else have the worker's disk checked, and go on with "
        "resumeFrom.",
    )


def _reads_back_different(file: str, what: str) -> CloisterError:
    return CloisterError(
        FailureReason.ADAPTER_INVALID,
        f"{file} of the merged model reads back from the worker's disk different from what was written: {what}. Have "
        "that disk checked, and go on with resumeFrom.",
    )
