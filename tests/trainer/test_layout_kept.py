"""On GPUs a start that goes on from a checkpoint lays its work out as the start before it did, where that fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cloister_trainer.storage import open_storage
from cloister_trainer.train.context import WorkerContext
from cloister_trainer.train.inputs import Inputs, fetch_inputs
from cloister_trainer.train.messages import Message, Request, Warned
from cloister_trainer.train.setup import plan_for
from cloister_trainer.train.state import TrainState
from support.random_llama import SMALL, make_long_tokens, make_random_llama
from support.tiny_run import TinyRun, make_run

GIB = 2**30
MUCH, LESS, LEAST = 8 * GIB, 2 * GIB, GIB // 2
"""Bytes that are free on the GPU: for a whole batch, for a part of it, for one example."""


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
    tiny = make_run(
        tmp_path, training={"globalBatchSize": 16}, distribution={"workers": 1, "gpusPerWorker": 1, "gpuMemory": "80Gi"}
    )
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
