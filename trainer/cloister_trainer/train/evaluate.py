"""The loss on the validation examples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from cloister_trainer.records import TrainPlan
from cloister_trainer.train.examples import Examples
from cloister_trainer.train.layout import collate, lay_out
from cloister_trainer.train.model import TrainingModule


def evaluate(
    module: TrainingModule,
    examples: Examples,
    plan: TrainPlan,
    *,
    rank: int,
    world_size: int,
    device: torch.device,
    beat: Callable[[], None],
) -> tuple[float, int]:
    """This rank's share: the summed loss of its label tokens, and how many they are.

    The mean over all ranks' tokens is the validation loss. Every rank makes equally many forward passes. `beat` is
    called after each.
    """
    ids = np.arange(len(examples), dtype=np.int64)
    bins = lay_out(examples.lengths, ids, world_size, plan.micro_batch_tokens, plan.packing)[rank]
    total, labels = torch.zeros((), dtype=torch.float64, device=device), 0
    with torch.no_grad(), module.evaluating():
        for content in bins:
            micro_batch = collate(examples, content, device)
            total += module(micro_batch)
            labels += micro_batch.label_count
            beat()
    return float(total), labels
