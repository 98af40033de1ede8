"""On GPUs a start that goes on from a checkpoint lays its work out as the start before it did, where that fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cloister_api.events import Progress
from cloister_trainer.storage import open_storage
from cloister_trainer.train.context import WorkerContext
from cloister_trainer.train.inputs import Inputs, fetch_inputs
from cloister_trainer.train.messages import Ended, Message, Request, Warned
from cloister_trainer.train.setup import plan_for
from cloister_trainer.train.state import TrainState
from support.random_llama import SMALL, make_long_tokens, make_random_llama
from support.tiny_ranks import run_ranks
from support.tiny_run import TinyRun, make_run

GIB = 2**30
MUCH, LESS, LEAST = 8 * GIB, 2 * GIB, GIB // 2
"""Bytes that are free on the GPU: for a whole batch, for a part of it, for one example."""


ON_A_GPU = {"workers": 1, "gpusPerWorker": 1, "gpuMemory": "80Gi"}


class Told:
    """What a rank said."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def push(self, message: Message) -> None:
        self.messages.append(message)

    def request(self) -> Request:
        return Request.NONE


class Rank:
    """The first of some ranks on GPUs: its plan for the free memory, and what its next start finds."""

    def __init__(self, tiny: TinyRun) -> None:
        self._tiny, self.told, self.state = tiny, Told(), TrainState()
        self._inputs: Inputs | None = None

    def starts(self, free: int, ranks: int = 1) -> int:
        """Tokens of its micro-batches."""
        context = WorkerContext(
            run=self._tiny.run,
            plan=self._tiny.plan,
            attempt=1,
            rank=0,
            world_size=ranks,
            node="node",
            device=torch.device("cpu"),
            storage=open_storage(),
            sink=self.told,
            scratch=self._tiny.scratch,
            models=self._tiny.scratch / "models",
        )
        self._inputs = self._inputs or fetch_inputs(context, lambda: None)
        self.state = TrainState.model_validate_json(self.state.model_dump_json(by_alias=True))
        return plan_for(context, self._inputs, self.state, free).plan.plan.micro_batch_tokens


@pytest.fixture
def rank(tmp_path: Path) -> Rank:
    record = make_random_llama(tmp_path / "model", SMALL)
    index = make_long_tokens(tmp_path / "tokens", 64, 1000, SMALL["vocab_size"])
    training = {"globalBatchSize": 16, "deterministic": True}
    tiny = make_run(tmp_path, training=training, distribution=ON_A_GPU)
    spec = tiny.run.spec.model_copy(update={"model": tiny.run.spec.model.model_copy(update={"uri": record.uri})})
    plan = tiny.plan.model_copy(update={"model": record, "tokens_uri": (tmp_path / "tokens").as_uri(), "data": index})
    return Rank(TinyRun(tmp_path, tiny.run.model_copy(update={"spec": spec}), plan))


def test_more_or_a_little_less_free_memory_changes_nothing(rank: Rank) -> None:
    first = rank.starts(LESS)
    assert rank.starts(MUCH) == rank.starts(LESS) == first
    assert not rank.told.messages
    rank.state = TrainState()
    assert rank.starts(MUCH) > first


def test_what_no_longer_fits_is_laid_out_anew_and_told(rank: Rank) -> None:
    first = rank.starts(MUCH)
    second = rank.starts(LEAST)
    assert second < first
    (message,) = rank.told.messages
    assert isinstance(message, Warned)
    assert f"{second:,} tokens a micro-batch; the one before had" in message.what
    assert f"{first:,} tokens a micro-batch, so sums round otherwise" in message.what


def test_another_number_of_ranks_has_a_plan_of_its_own(rank: Rank) -> None:
    first = rank.starts(LESS)
    assert rank.starts(MUCH, ranks=2) > first
    assert not rank.told.messages


def test_the_layout_is_in_the_checkpoint_and_counts_for_the_next_start(tmp_path: Path) -> None:
    """With little memory free the tiny model's activations are recomputed, with much they are not."""
    little, much, steps = 1_000_000, 100_000_000, 8
    training = {"deterministic": True, "precision": "BF16", "globalBatchSize": 7}
    tiny = make_run(tmp_path, steps=steps, training=training, distribution=ON_A_GPU)

    def stop_at_three(message: Any, act: Any) -> None:
        if isinstance(message, Progress) and message.step == 3:
            act("stop")

    assert run_ranks(tiny, watch=stop_at_three, free_memory=little).end().how == "interrupted"
    second = run_ranks(tiny, attempt=2, free_memory=much)
    assert second.end() == Ended("finished", steps)
    assert not second.of(Warned)
    newest = max(tiny.stored("checkpoints").iterdir()) / "index.json"
    assert json.loads(newest.read_text())["state"]["layout"]["gradientCheckpointing"] is True
    assert tiny.checks()["plan"]["gradientCheckpointing"] is True
