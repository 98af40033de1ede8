"""Writes examples as safetensors shards, in groups that are repeated or kept as a whole."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import save_file

from cloister_api.layout import join
from cloister_trainer.prepare.row_worker import Counts, PackedExamples, TokenisedChunk
from cloister_trainer.records import FileDigest, SampleRow, TokenShard
from cloister_trainer.storage import MissingObject, Storage
from cloister_trainer.storage.os_errors import translate_os_error

SHARD_BYTES = 128_000_000
"""A shard is closed when it passes this size; with its last chunk it stays far below 256 MB."""

HASH_PIECE_BYTES = 1 << 20
GROUPS = "groups"
INDEX = "index.json"

_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""How safetensors, written in Rust, ends its message when a file cannot be written."""


@dataclass
class GroupResult:
    """A finished group: consecutive chunks of the dataset that were tokenised together."""

    digest: str
    train: list[TokenShard] = field(default_factory=list)
    validation: list[TokenShard] = field(default_factory=list)
    samples: list[SampleRow] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    epoch_examples: int = 0
    epoch_tokens: int = 0
    epoch_trained_tokens: int = 0
    longest: int = 0
    largest_id: int = 0

    def to_json(self) -> bytes:
        """As the group's own record, by which a later start knows that it need not be repeated."""
        fields = {
            **self.__dict__,
            "train": [shard.to_api() for shard in self.train],
            "validation": [shard.to_api() for shard in self.validation],
            "samples": [sample.to_api() for sample in self.samples],
            "counts": {**self.counts.__dict__, "lengths": sorted(self.counts.lengths.items())},
        }
        return json.dumps(fields).encode()

    @classmethod
    def from_json(cls, data: bytes) -> GroupResult:
        """The inverse of to_json."""
        fields = json.loads(data)
        counts = fields.pop("counts")
        lengths = {int(length): int(count) for length, count in counts.pop("lengths")}
        return cls(
            **{
                **fields,
                "train": [TokenShard.model_validate(shard) for shard in fields["train"]],
                "validation": [TokenShard.model_validate(shard) for shard in fields["validation"]],
                "samples": [SampleRow.model_validate(sample) for sample in fields["samples"]],
            },
            counts=Counts(**counts, lengths=Counter(lengths)),
        )


def delete_other_groups(storage: Storage, folder: str, digest: str) -> None:
    """Delete what an earlier start left for other rows or options."""
    records = storage.list(join(folder, GROUPS))
    if records and GroupResult.from_json(storage.read(records[0].uri)).digest != digest:
        storage.delete_prefix(folder)


def read_group(storage: Storage, folder: str, number: int) -> GroupResult | None:
    """A group that an earlier start finished, or None."""
    try:
        return GroupResult.from_json(storage.read(_group_uri(folder, number)))
    except MissingObject:
        return None


class GroupWriter:
    """Collects one group's examples and writes its shards, the group's record last."""

    def __init__(self, storage: Storage, folder: str, scratch: Path, number: int, digest: str) -> None:
        self._storage, self._folder, self._scratch, self.number = storage, folder, scratch, number
        self._sides = {"train": _Side(), "validation": _Side()}
        self.result = GroupResult(digest)

    def add(self, chunk: TokenisedChunk) -> None:
        """Take a chunk's examples, samples and numbers."""
        train, validation = chunk.train, chunk.validation
        self.result.samples += chunk.samples
        self.result.counts.add(chunk.counts)
        for name, packed in (("train", train), ("validation", validation)):
            side = self._sides[name]
            side.parts.append(packed)
            side.bytes += packed.tokens.nbytes + packed.spans.nbytes + packed.lengths.nbytes
            if len(packed.lengths):
                self.result.longest = max(self.result.longest, int(packed.lengths.max()))
                self.result.largest_id = max(self.result.largest_id, int(packed.tokens.max()))
            if side.bytes >= SHARD_BYTES:
                self._flush(name)
        trained = _trained_by_example(train)
        times = train.repeats.astype(np.int64)
        self.result.epoch_examples += int(times.sum())
        self.result.epoch_tokens += int((train.lengths * times).sum())
        self.result.epoch_trained_tokens += int((trained * times).sum())

    def finish(self) -> GroupResult:
        """Write what is left, and the record."""
        for name in self._sides:
            self._flush(name)
        self._storage.write(_group_uri(self._folder, self.number), self.result.to_json())
        return self.result

    def _flush(self, name: str) -> None:
        side = self._sides[name]
        packed = merge(side.parts)
        if len(packed.lengths):
            shards = self.result.train if name == "train" else self.result.validation
            file = f"{name}-{self.number:05d}-{len(shards)}.safetensors"
            shards.append(
                _write(self._storage, self._folder, self._scratch / file, packed, with_repeats=name == "train")
            )
        self._sides[name] = _Side()


@dataclass
class _Side:
    parts: list[PackedExamples] = field(default_factory=list)
    bytes: int = 0


def merge(parts: list[PackedExamples]) -> PackedExamples:
    """Several parts as one."""
    starts = np.cumsum([0, *(len(part.lengths) for part in parts)])
    spans = [
        part.spans + np.array([start, 0, 0], np.int32) for part, start in zip(parts, starts[:-1].tolist(), strict=True)
    ]
    return PackedExamples(
        np.concatenate([np.zeros(0, np.uint32), *(part.tokens for part in parts)]),
        np.concatenate([np.zeros(0, np.int64), *(part.lengths for part in parts)]),
        np.concatenate([np.zeros((0, 3), np.int32), *spans]),
        np.concatenate([np.zeros(0, np.uint8), *(part.repeats for part in parts)]),
    )


def _write(storage: Storage, folder: str, path: Path, packed: PackedExamples, *, with_repeats: bool) -> TokenShard:
    offsets = np.concatenate([[0], np.cumsum(packed.lengths)]).astype(np.int64)
    tensors: dict[str, npt.NDArray[Any]] = {"tokens": packed.tokens, "offsets": offsets, "labelSpans": packed.spans}
    if with_repeats:
        tensors["repeats"] = packed.repeats
    try:
        _save(tensors, path)
        digest, size = hashlib.sha256(), path.stat().st_size
        with path.open("rb") as file:
            while piece := file.read(HASH_PIECE_BYTES):
                digest.update(piece)
        storage.upload(path, join(folder, path.name))
    finally:
        path.unlink(missing_ok=True)
    return TokenShard(
        file=FileDigest(name=path.name, size=size, sha256=digest.hexdigest()),
        examples=len(packed.lengths),
        tokens=len(packed.tokens),
        trained_tokens=int((packed.spans[:, 2] - packed.spans[:, 1]).sum()),
    )


def _save(tensors: dict[str, npt.NDArray[Any]], path: Path) -> None:
    """Raises StorageError LocalDiskFull, and its like for what else the operating system refuses."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        if (number := _OS_ERROR.search(str(error))) is None:
            raise
        raise translate_os_error(OSError(int(number[1]), ""), str(path), "writing") from None


def _trained_by_example(packed: PackedExamples) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    trained = np.zeros(len(packed.lengths), np.int64)
    np.add.at(trained, packed.spans[:, 0], (packed.spans[:, 2] - packed.spans[:, 1]).astype(np.int64))
    return trained


def _group_uri(folder: str, number: int) -> str:
    return join(folder, GROUPS, f"{number:05d}.json")
