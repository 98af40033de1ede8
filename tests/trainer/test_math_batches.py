"""Batches: a permutation of the epoch, found without state; layouts: the same batch on any number of workers."""

from __future__ import annotations

import numpy as np
import pytest

from cloister_api.spec_training import Training
from cloister_trainer.train.batches import batch_ids, position_of, steps_per_epoch, total_steps
from cloister_trainer.train.layout import collate, lay_out
from support.tiny_models import ListExamples

EPOCH = np.arange(1000, 1103)


def epoch_of(seed: int, epoch: int, size: int = 10) -> list[int]:
    batches = [batch_ids(EPOCH, seed, epoch, k, size) for k in range(steps_per_epoch(len(EPOCH), size))]
    return [int(i) for batch in batches for i in batch]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 1000])
def test_an_epoch_holds_every_example_exactly_once(count: int) -> None:
    ids = np.arange(count)
    seen = np.concatenate([batch_ids(ids, 42, 0, k, 7) for k in range(steps_per_epoch(count, 7))])
    assert sorted(seen) == list(ids)


def test_repeated_examples_occur_as_often_as_the_epoch_says() -> None:
    seen = np.concatenate([batch_ids(np.array([4, 4, 4, 9]), 1, 0, k, 3) for k in range(2)])
    assert sorted(seen) == [4, 4, 4, 9]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    assert epoch_of(42, 0) == epoch_of(42, 0)
    assert epoch_of(42, 0) != epoch_of(42, 1)
    assert epoch_of(42, 0) != epoch_of(43, 0)
    assert epoch_of(42, 0) != list(EPOCH)


def test_an_order_has_no_pattern_that_a_shuffle_would_not_have() -> None:
    positions = np.argsort(np.concatenate([batch_ids(np.arange(4096), 7, 0, k, 64) for k in range(64)]))
    correlation = np.corrcoef(np.arange(4096), positions)[0, 1]
    neighbours = np.abs(np.diff(positions)).mean()
    assert abs(correlation) < 0.06
    assert 0.9 < neighbours / (4096 / 3) < 1.1


def test_the_last_batch_of_an_epoch_is_smaller() -> None:
    assert [len(batch_ids(EPOCH, 0, 0, k, 10)) for k in (0, 9, 10)] == [10, 10, 3]


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"), [(3, None, 33), (0.5, None, 6), (3, 5, 5), (1, 100, 11), (0.001, None, 1)]
)
def test_a_run_ends_at_epochs_or_max_steps(epochs: float, max_steps: int | None, expected: int) -> None:
    training = Training(epochs=epochs, max_steps=max_steps, global_batch_size=10)
    assert total_steps(len(EPOCH), training) == expected


@pytest.mark.parametrize(("epochs", "steps"), [(1.1, 55), (2.2, 110), (0.3, 15)])
def test_a_share_of_an_epoch_is_not_rounded_up_by_a_rounding_error(epochs: float, steps: int) -> None:
    assert total_steps(800, Training(epochs=epochs, global_batch_size=16)) == steps


def test_steps_count_from_one_through_epochs() -> None:
    assert [position_of(step, 11) for step in (1, 11, 12)] == [(0, 0), (0, 10), (1, 0)]


LENGTHS = np.random.default_rng(0).integers(5, 120, 200)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("packing", [True, False])
def test_every_example_lies_in_one_bin_of_one_rank(world_size: int, packing: bool) -> None:
    ids = np.arange(3, 67)
    ranks = lay_out(LENGTHS, ids, world_size, 256, packing)
    placed = [i for rank in ranks for content in rank for i in content]
    assert sorted(placed) == list(ids)
    assert len({len(rank) for rank in ranks}) == 1
    if packing:
        assert max(int(LENGTHS[list(content)].sum()) for rank in ranks for content in rank) <= 256
    else:
        assert all(len(content) <= 1 for rank in ranks for content in rank)


def test_packing_wastes_little_and_loads_ranks_evenly() -> None:
    ranks = lay_out(LENGTHS, np.arange(200), 4, 512, packing=True)
    loads = [sum(int(LENGTHS[list(content)].sum()) for content in rank) for rank in ranks]
    assert len(ranks[0]) <= int(LENGTHS.sum()) / (4 * 512) + 1
    assert max(loads) < 1.05 * min(loads)


def test_an_example_longer_than_a_micro_batch_lies_alone() -> None:
    ranks = lay_out(np.array([300, 10, 20]), np.arange(3), 1, 100, packing=True)
    assert sorted(ranks[0]) == [(0,), (2, 1)]


def test_the_same_id_twice_in_a_batch_is_trained_twice() -> None:
    ranks = lay_out(LENGTHS, np.array([5, 5, 6]), 2, 256, packing=True)
    assert sorted(i for rank in ranks for content in rank for i in content) == [5, 5, 6]


def test_a_rank_that_is_short_of_a_bin_gets_one_token_without_loss() -> None:
    ranks = lay_out(LENGTHS, np.array([1]), 3, 256, packing=True)
    assert [len(rank) for rank in ranks] == [1, 1, 1]
    micro_batch = collate(ListExamples([9, 9]), ranks[2][0], "cpu")
    assert micro_batch.label_count == 0
    assert micro_batch.input_ids.shape == (1, 1)


def test_a_micro_batch_restarts_positions_and_predicts_label_tokens_from_the_token_before() -> None:
    examples = ListExamples([6, 4], prompt_share=0.5)
    micro_batch = collate(examples, (1, 0), "cpu")
    row = [*examples.tokens(1), *examples.tokens(0)]
    assert micro_batch.input_ids.tolist() == [row]
    assert micro_batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]]
    assert micro_batch.cu_seqlens.tolist() == [0, 4, 10]
    assert micro_batch.label_positions.tolist() == [1, 2, 6, 7, 8]
    assert micro_batch.labels.tolist() == [row[p + 1] for p in (1, 2, 6, 7, 8)]
    assert micro_batch.segment_lengths == (4, 6)


def test_a_very_large_batch_is_laid_out() -> None:
    lengths = np.random.default_rng(1).integers(5, 400, 65536)
    ranks = lay_out(lengths, np.arange(65536), 8, 4096, packing=True)
    assert sum(len(content) for rank in ranks for content in rank) == 65536
