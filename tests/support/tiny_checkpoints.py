"""Checkpoints of a tiny run, written and fetched by the trainer's own code."""

from __future__ import annotations

import torch
from torch import Tensor

from cloister_trainer.records import PlanFile
from cloister_trainer.storage import open_storage
from cloister_trainer.train.checkpoint import CheckpointWriter, fetch_newest, resume_settings
from cloister_trainer.train.checkpoint_index import CheckpointIndex
from cloister_trainer.train.state import TrainState
from support.tiny_run import TinyRun


def tensors_of(step: int) -> dict[str, Tensor]:
    return {"a": torch.full((3, 2), float(step)), "exp_avg.a": torch.ones(3, 2), "exp_avg_sq.a": torch.ones(3, 2)}


def write(tiny: TinyRun, steps: list[int], keep: int = 10, best: int | None = None) -> None:
    writer = CheckpointWriter(open_storage(), tiny.run.layout, keep, tiny.root / "writing")
    for step in steps:
        index = CheckpointIndex(
            step=step,
            settings=resume_settings(tiny.run, tiny.plan),
            files=[],
            state=TrainState(step=step, best_step=best),
        )
        best_tensors = {"a": torch.full((3, 2), -1.0)} if best not in {None, step} else None
        part = (tiny.run.layout.metrics_part(step), b"{}\n")
        writer.make_ready()
        writer.write(index, tensors_of(step), best_tensors, part, lambda _uri: None)
    writer.wait()
    writer.close()


def fetched_step(tiny: TinyRun, plan: PlanFile | None = None) -> int:
    found = fetch_newest(open_storage(), tiny.run, plan or tiny.plan, tiny.root / "fetched")
    if found is None:
        return 0
    with found.tensors() as read:
        assert torch.equal(read("a"), tensors_of(found.index.step)["a"])
    return found.index.step
