"""How a batch lies on the workers: examples put into micro-batches, and a micro-batch as tensors."""

from __future__ import annotations

import bisect
import heapq
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Bin = tuple[int, ...]
"""Ids of the examples that lie one after another in one micro-batch; empty for a rank that is short of one."""


class ExampleSource(Protocol):
    """What a micro-batch is filled from; `Examples` is one."""

    def tokens(self, index: int) -> NDArray[np.uint32]:
        """Token ids, uint32 [n]."""

    def label_mask(self, index: int) -> NDArray[np.bool_]:
        """Which tokens carry loss, bool [n]."""


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of one rank: examples as segments of one row of T tokens, L of which carry loss."""

    input_ids: Tensor
    """int64 [1, T]."""
    position_ids: Tensor
    """int64 [1, T], from 0 in each segment."""
    cu_seqlens: Tensor
    """int32 [segments + 1]: where each segment begins, and T."""
    segment_lengths: tuple[int, ...]
    """The same on the host, so that nothing waits for the device."""
    label_positions: Tensor
    """int64 [L]: positions whose next token carries loss."""
    labels: Tensor
    """int64 [L]: those next tokens."""

    @property
    def label_count(self) -> int:
        """Tokens that carry loss."""
        return len(self.labels)


def lay_out(
    lengths: NDArray[np.int64], ids: NDArray[np.int64], world_size: int, micro_batch_tokens: int, packing: bool
) -> list[list[Bin]]:
    """Bins of `ids` by rank, equally many for each, longest examples first; `lengths` is indexed by example id.

    With `packing` a bin holds examples of at most `micro_batch_tokens` tokens in all (an example that is longer lies
    alone), else one example. Bins of equal turn have similar sizes on all ranks, since ranks wait for each other.
    A pure function: every rank computes the same layout and takes its own share.
    """
    bins: list[Bin]
    order = sorted((int(i) for i in ids), key=lambda i: (-int(lengths[i]), i))
    bins = _pack(lengths, order, world_size, micro_batch_tokens) if packing else [(i,) for i in order]
    bins.sort(key=lambda content: (-sum(int(lengths[i]) for i in content), content))
    turns = max(1, math.ceil(len(bins) / world_size))
    bins += [()] * (turns * world_size - len(bins))
    ranks: list[list[Bin]] = [[] for _ in range(world_size)]
    for turn in range(turns):
        row = bins[turn * world_size : (turn + 1) * world_size]
        for rank, content in enumerate(reversed(row) if turn % 2 else row):
            ranks[rank].append(content)
    return ranks


def _pack(lengths: NDArray[np.int64], order: list[int], world_size: int, capacity: int) -> list[Bin]:
    """As few bins as best-fit decreasing finds, rounded up to fill all ranks, and as even as that number allows."""
    tight = _best_fit(lengths, order, capacity)
    count = min(len(order), math.ceil(len(tight) / world_size) * world_size)
    even: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, b) for b in range(count)]
    fits = True
    for i in order:
        load, b = loads[0]
        fits = fits and (load == 0 or load + int(lengths[i]) <= capacity)
        even[b].append(i)
        heapq.heapreplace(loads, (load + int(lengths[i]), b))
    return [tuple(content) for content in (even if fits else tight)]


def _best_fit(lengths: NDArray[np.int64], order: list[int], capacity: int) -> list[list[int]]:
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, bin), sorted
    for i in order:
        length = int(lengths[i])
        place = bisect.bisect_left(room, (length, 0))
        if place < len(room):
            free, b = room.pop(place)
        else:
            free, b = max(capacity, length), len(bins)
            bins.append([])
        bins[b].append(i)
        bisect.insort(room, (free - length, b))
    return bins


def collate(examples: ExampleSource, content: Bin, device: torch.device | str) -> MicroBatch:
    """The micro-batch of one bin on `device`; of an empty bin one token that carries no loss."""
    tokens = [examples.tokens(i).astype(np.int64) for i in content] or [np.zeros(1, dtype=np.int64)]
    masks = [examples.label_mask(i) for i in content] or [np.zeros(1, dtype=bool)]
    lengths = tuple(len(segment) for segment in tokens)
    row, mask = np.concatenate(tokens), np.concatenate(masks)
    labelled = np.flatnonzero(mask)
    return MicroBatch(
        input_ids=_to_device(row[None], device),
        position_ids=_to_device(np.concatenate([np.arange(n) for n in lengths])[None], device),
        cu_seqlens=_to_device(np.cumsum((0, *lengths)).astype(np.int32), device),
        segment_lengths=lengths,
        label_positions=_to_device(labelled - 1, device),
        labels=_to_device(row[labelled], device),
    )


def _to_device(array: NDArray[np.int64] | NDArray[np.int32], device: torch.device | str) -> Tensor:
    tensor = torch.from_numpy(array)
    if torch.device(device).type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
