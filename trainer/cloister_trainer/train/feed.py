"""The micro-batches of each step, made one step ahead beside the loop."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from cloister_api.spec_training import Training
from cloister_trainer.records import TrainPlan
from cloister_trainer.train.batches import batch_ids, position_of, steps_per_epoch
from cloister_trainer.train.examples import Examples
from cloister_trainer.train.layout import Bin, MicroBatch, collate, lay_out


@dataclass(frozen=True)
class StepBatch:
    """One step's share of a rank, and what it knows of the global batch."""

    step: int
    micro_batches: list[MicroBatch]
    labels: int
    """Label tokens of the global batch."""
    tokens: int
    """Tokens of the global batch."""
    slots: int
    """Tokens that the ranks had time for: in each turn all wait for the longest micro-batch."""
    epoch: float
    """Epochs of examples seen after the step."""


class BatchFeed:
    """Batches by step. A pure function of the step, so the order of asking does not matter; the next is made ahead.

    A context: its thread ends with it.
    """

    def __init__(
        self, examples: Examples, training: Training, plan: TrainPlan, rank: int, world_size: int, device: torch.device
    ) -> None:
        self._examples, self._training, self._plan = examples, training, plan
        self._rank, self._world_size, self._device = rank, world_size, device
        self.steps_per_epoch = steps_per_epoch(len(examples.epoch_ids), training.global_batch_size)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._ahead: tuple[int, Future[StepBatch]] | None = None

    def get(self, step: int) -> StepBatch:
        """The batch of `step`, from 1."""
        ahead, self._ahead = self._ahead, (step + 1, self._pool.submit(self._make, step + 1))
        if ahead is not None and ahead[0] == step:
            return ahead[1].result()
        return self._make(step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _make(self, step: int) -> StepBatch:
        epoch, k = position_of(step, self.steps_per_epoch)
        ids = batch_ids(self._examples.epoch_ids, self._training.seed, epoch, k, self._training.global_batch_size)
        ranks = lay_out(
            self._examples.lengths, ids, self._world_size, self._plan.micro_batch_tokens, self._plan.packing
        )
        return StepBatch(
            step=step,
            micro_batches=[collate(self._examples, content, self._device) for content in ranks[self._rank]],
            labels=int(self._examples.trained[ids].sum()),
            tokens=int(self._examples.lengths[ids].sum()),
            slots=_slots(self._examples.lengths, ranks),
            epoch=epoch + (k + 1) / self.steps_per_epoch,
        )


def _slots(lengths: NDArray[np.int64], ranks: list[list[Bin]]) -> int:
    turns = zip(*ranks, strict=True)
    return len(ranks) * sum(max(int(lengths[list(content)].sum()) for content in turn) for turn in turns)
