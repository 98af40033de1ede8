"""Which examples make batch k: a keyed permutation of the epoch, computed and never stored."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from cloister_api.spec_training import Training

_ROUNDS = 6


def steps_per_epoch(epoch_examples: int, batch_size: int) -> int:
    """Batches in an epoch; the last one may be smaller."""
    return math.ceil(epoch_examples / batch_size)


def total_steps(epoch_examples: int, training: Training) -> int:
    """Optimizer steps of a run: epochs or maxSteps, whichever ends first."""
    batches = steps_per_epoch(epoch_examples, training.global_batch_size)
    steps = max(1, math.ceil(round(training.epochs * batches, 6)))  # 1.1 * 50 is a little more than 55
    return steps if training.max_steps is None else min(steps, training.max_steps)


def position_of(step: int, batches_in_epoch: int) -> tuple[int, int]:
    """The epoch and the batch within it, both from 0, that step `step` (from 1) trains on."""
    return divmod(step - 1, batches_in_epoch)


def batch_ids(epoch_ids: NDArray[np.int64], seed: int, epoch: int, k: int, batch_size: int) -> NDArray[np.int64]:
    """Example ids of batch `k` of `epoch`: int64 [batch_size], fewer in the epoch's last batch.

    A pure function of its arguments: every example of `epoch_ids` occurs exactly once in an epoch's batches, on any
    number of workers, and batch k is found without computing the others.
    """
    count = len(epoch_ids)
    positions = np.arange(k * batch_size, min((k + 1) * batch_size, count), dtype=np.uint64)
    return epoch_ids[_permute(positions, count, _round_keys(seed, epoch))]


def _round_keys(seed: int, epoch: int) -> NDArray[np.uint64]:
    digest = hashlib.sha512(f"batches/{seed}/{epoch}".encode()).digest()
    return np.frombuffer(digest, dtype="<u8")[:_ROUNDS].astype(np.uint64)


def _permute(positions: NDArray[np.uint64], count: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """A permutation of range(count): a Feistel network on an even number of bits, walked until it lands inside.

    Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (2002), cycle-walking cipher. The network's domain is
    less than four times `count`, so a walk takes four rounds on average at most.
    """
    half = np.uint64(max(1, math.ceil((count - 1).bit_length() / 2)))
    values = _feistel(positions, half, keys)
    outside = values >= count
    while outside.any():
        values[outside] = _feistel(values[outside], half, keys)
        outside = values >= count
    return values.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half: np.uint64, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014); uint64 arithmetic wraps as it should."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
