"""Tokenised examples, read in place from the shards that prepare wrote."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister_api.errors import CloisterError
from cloister_api.layout import join
from cloister_api.reasons import FailureReason
from cloister_trainer.records import TokenShard, TokensIndex
from cloister_trainer.storage import Storage

_NUMPY_TYPES = {"U8": "<u1", "U32": "<u4", "I32": "<i4", "I64": "<i8"}
_DOWNLOADS = 8


class Examples:
    """The examples of a list of shards, numbered from 0 across them; token ids stay on disk until asked for."""

    def __init__(self, folder: Path, shards: list[TokenShard]) -> None:
        self._shards = [_Shard(folder / shard.file.name, shard) for shard in shards]
        counts = [shard.examples for shard in shards]
        self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        self.lengths: NDArray[np.int64] = _joined([shard.lengths for shard in self._shards])
        """Tokens of each example, int64 [N]."""
        self.trained: NDArray[np.int64] = _joined([shard.trained for shard in self._shards])
        """Tokens of each example that carry loss, int64 [N]."""
        repeats = _joined([shard.repeats.astype(np.int64) for shard in self._shards])
        self.epoch_ids: NDArray[np.int64] = np.repeat(np.arange(len(self), dtype=np.int64), repeats)
        """Example ids of one epoch, each as often as it occurs, int64 [M]."""

    def __len__(self) -> int:
        return int(self._first[-1])

    def tokens(self, index: int) -> NDArray[np.uint32]:
        """Token ids of example `index`, uint32 [n]."""
        shard, local = self._find(index)
        return shard.tokens[shard.offsets[local] : shard.offsets[local + 1]]

    def label_mask(self, index: int) -> NDArray[np.bool_]:
        """Which tokens of example `index` carry loss, bool [n]; never the first, which nothing predicts."""
        shard, local = self._find(index)
        mask = np.zeros(int(shard.lengths[local]), dtype=bool)
        for _, start, end in shard.spans[shard.first_span[local] : shard.first_span[local + 1]]:
            mask[start:end] = True
        mask[:1] = False
        return mask

    def _find(self, index: int) -> tuple[_Shard, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        shard = int(np.searchsorted(self._first, index, side="right")) - 1
        return self._shards[shard], index - int(self._first[shard])


class _Shard:
    """One safetensors file, memory-mapped; the format is an 8-byte header length, a JSON header, then the tensors."""

    def __init__(self, path: Path, record: TokenShard) -> None:
        tensors = _map_safetensors(path)
        self.tokens: NDArray[np.uint32] = tensors["tokens"]
        self.offsets: NDArray[np.int64] = tensors["offsets"]
        self.spans: NDArray[np.int32] = tensors["labelSpans"].reshape(-1, 3)
        if len(self.offsets) != record.examples + 1 or int(self.offsets[-1]) != len(self.tokens):
            raise CloisterError(
                FailureReason.INTERNAL,
                f"{path.name} holds {len(self.offsets) - 1} examples and {len(self.tokens)} tokens, but its index says "
                f"{record.examples} and {record.tokens}. Delete the run's tokens and prepare again.",
            )
        self.repeats: NDArray[np.uint8] = tensors.get("repeats", np.ones(record.examples, dtype=np.uint8))
        self.lengths: NDArray[np.int64] = np.diff(self.offsets)
        self.first_span = np.searchsorted(self.spans[:, 0], np.arange(record.examples + 1))
        trained = np.zeros(record.examples, dtype=np.int64)
        starts_after_first = np.maximum(self.spans[:, 1], 1)
        np.add.at(trained, self.spans[:, 0], np.maximum(self.spans[:, 2] - starts_after_first, 0))
        self.trained: NDArray[np.int64] = trained


def download_tokens(storage: Storage, tokens_uri: str, index: TokensIndex, folder: Path) -> Path:
    """The folder that holds the shards of `index`: `folder`, filled once per node, or a file:// folder in place.

    Processes that start together wait for the first. Raises CloisterError (INTERNAL) when a shard differs from its
    digest, and the storage's own errors.
    """
    shards = [*index.train, *index.validation]
    if tokens_uri.startswith("file://"):
        return Path(tokens_uri.removeprefix("file://"))
    folder.mkdir(parents=True, exist_ok=True)
    complete = folder / "complete"
    with _one_process_at_a_time(folder / "lock"):
        if not complete.exists():
            with ThreadPoolExecutor(_DOWNLOADS) as pool:
                for done in [pool.submit(_download_shard, storage, tokens_uri, shard, folder) for shard in shards]:
                    done.result()
            complete.touch()
    return folder


def _download_shard(storage: Storage, tokens_uri: str, shard: TokenShard, folder: Path) -> None:
    path = folder / shard.file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    uri = join(tokens_uri, shard.file.name)
    storage.download(uri, path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != shard.file.sha256:
        raise CloisterError(
            FailureReason.INTERNAL,
            f"{uri} has sha256 {digest}, but the tokens' index says {shard.file.sha256}. It was changed after prepare "
            "wrote it: delete the folder and run the job again.",
        )


@contextmanager
def _one_process_at_a_time(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _map_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    with path.open("rb") as file:
        header_length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_length))
    tensors: dict[str, NDArray[Any]] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape = _NUMPY_TYPES[entry["dtype"]], tuple(entry["shape"])
        start = 8 + header_length + entry["data_offsets"][0]
        empty = 0 in shape
        tensors[name] = np.empty(shape, dtype) if empty else np.memmap(path, dtype, "r", start, shape)
    return tensors


def _joined(arrays: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64)
