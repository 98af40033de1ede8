"""Cloister's own mathematics in a plain loop: no Ray, no DeepSpeed, no checkpoints, no metrics."""

from __future__ import annotations

import os
import time

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from benchmarks.contenders.workload import (
    LEARNING_RATE,
    MICRO_BATCH_TOKENS,
    WARM_UP_STEPS,
    Options,
    Row,
    lora,
    options,
    report,
    targets,
)
from cloister_api.spec_training import Precision
from cloister_trainer.train.layout import collate, lay_out
from cloister_trainer.train.lora import add_lora
from cloister_trainer.train.model import TrainingModule, load_base


class Rows:
    """Rows in memory as the layout reads them."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows
        self.lengths = np.array([len(row.tokens) for row in rows], dtype=np.int64)

    def tokens(self, index: int) -> NDArray[np.uint32]:
        return self._rows[index].tokens.astype(np.uint32)

    def label_mask(self, index: int) -> NDArray[np.bool_]:
        row = self._rows[index]
        return np.arange(len(row.tokens)) >= max(1, row.first_label)


def main(asked: Options) -> None:
    """Train and report; with several processes, rank 0 reports."""
    rank, world = int(os.environ.get("RANK", "0")), asked.processes
    if world > 1:
        dist.init_process_group("gloo")
    precision = Precision(asked.precision)
    base = load_base(asked.model, precision, asked.workload.lengths[1])
    module = TrainingModule(add_lora(base, targets(base), lora(), seed=1), precision)
    module.train()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0)
    rows = Rows(asked.workload.rows(asked.steps, base.config.vocab_size))
    size = asked.workload.batch_size
    tokens, losses, started = 0, [], 0.0
    for step in range(asked.steps + WARM_UP_STEPS):
        if step == WARM_UP_STEPS:
            tokens, started = 0, time.perf_counter()
        ids = np.arange(step * size, (step + 1) * size)
        bins = lay_out(rows.lengths, ids, world, MICRO_BATCH_TOKENS, packing=True)[rank]
        labels = sum(int(rows.label_mask(int(i)).sum()) for i in ids)
        total = torch.zeros(())
        for content in bins:
            loss = module(collate(rows, content, "cpu")) / labels
            loss.backward()
            total += loss.detach()
        if world > 1:
            gradients = [parameter.grad for parameter in parameters]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += int(rows.lengths[ids].sum())
        losses.append(total.item())
    if rank == 0:
        report(tokens, time.perf_counter() - started, losses)
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(options())
