"""The order of examples: the same global batches on any number of ranks, and from any step that a run goes on from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from cloister_trainer.train.batches import batch_ids, position_of
from cloister_trainer.train.examples import Examples
from cloister_trainer.train.feed import BatchFeed, StepBatch
from support.tiny_run import TinyRun, make_run

COUNT, SIZE, STEPS_PER_EPOCH, SEED = 23, 7, 4, 5
STEPS = range(1, 3 * STEPS_PER_EPOCH + 1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return make_run(tmp_path_factory.mktemp("order"), train=COUNT, training={"globalBatchSize": SIZE, "seed": SEED})


@pytest.fixture(scope="module")
def examples(tiny: TinyRun) -> Examples:
    return Examples(Path(tiny.plan.tokens_uri.removeprefix("file://")), tiny.plan.data.train)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_ranks_together_train_the_same_examples_at_each_step_from_wherever_they_begin(
    tiny: TinyRun, examples: Examples, ranks: int, packing: bool
) -> None:
    for first in (1, 2, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1, 10):
        found = batches(tiny, examples, ranks, packing, range(first, STEPS.stop))
        for step, shares in found.items():
            expected = expected_ids(examples, step)
            assert sorted(trained_ids(examples, shares)) == sorted(expected), step
            assert {share.labels for share in shares} == {int(examples.trained[expected].sum())}
            assert sum(part.label_count for share in shares for part in share.micro_batches) == shares[0].labels
            assert len({len(share.micro_batches) for share in shares}) == 1


def test_some_rank_has_a_micro_batch_without_labels_and_the_last_window_is_short(
    tiny: TinyRun, examples: Examples
) -> None:
    """What the comparisons with the plain truth rely on."""
    found = batches(tiny, examples, 3, True, range(1, STEPS_PER_EPOCH + 1))
    assert [len(trained_ids(examples, shares)) for shares in found.values()] == [7, 7, 7, 2]
    last = found[STEPS_PER_EPOCH]
    assert 0 in [part.label_count for share in last for part in share.micro_batches]


def batches(
    tiny: TinyRun, examples: Examples, ranks: int, packing: bool, steps: Iterable[int]
) -> dict[int, list[StepBatch]]:
    """Each step's share of every rank, asked for as a run asks."""
    plan = tiny.plan.plan.model_copy(update={"packing": packing})
    found: dict[int, list[StepBatch]] = {step: [] for step in steps}
    for rank in range(ranks):
        with BatchFeed(examples, tiny.run.spec.training, plan, rank, ranks, torch.device("cpu")) as feed:
            for step, shares in found.items():
                shares.append(feed.get(step))
    return found


def expected_ids(examples: Examples, step: int) -> np.ndarray:
    epoch, k = position_of(step, STEPS_PER_EPOCH)
    return batch_ids(examples.epoch_ids, SEED, epoch, k, SIZE)


def trained_ids(examples: Examples, shares: list[StepBatch]) -> list[int]:
    """Which examples the ranks' micro-batches hold, found by their tokens; one token alone fills up an empty one."""
    by_tokens = {tuple(examples.tokens(i).tolist()): i for i in range(len(examples))}
    assert len(by_tokens) == COUNT
    segments = [
        segment
        for share in shares
        for part in share.micro_batches
        for segment in part.input_ids[0].split(list(part.segment_lengths))
    ]
    return [by_tokens[tuple(segment.tolist())] for segment in segments if len(segment) > 1]
