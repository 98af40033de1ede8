"""Rows are held out, weighted and limited by their content: order and number of the other rows do not matter."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from cloister_api.spec_data import Dataset
from cloister_trainer.prepare.select import Selection, SourceRows, first_of_each, repeats, select


def rows(numbers: Any, weight: float = 1.0, max_examples: int | None = None, seed: int = 0) -> SourceRows:
    """Rows with random hashes; equal numbers are equal rows."""
    numbers = np.asarray(numbers)
    table = np.random.default_rng(seed).integers(0, 2**64, (100_000, 2), np.uint64)
    keys, prompts = table[numbers].T
    return SourceRows(keys, prompts, weight, max_examples)


def dataset(**fields: Any) -> Dataset:
    return Dataset.model_validate({"uri": "file:///data", **fields})


def chosen(numbers: Any, selection: Selection) -> tuple[set[int], set[int]]:
    """Numbers of the trained and of the held-out rows."""
    fates = selection.fates
    numbers = np.asarray(numbers)
    return set(numbers[fates.repeats > 0].tolist()), set(numbers[fates.held_out].tolist())


def test_adding_rows_moves_none() -> None:
    few, many = np.arange(1000), np.random.default_rng(1).permutation(5000)
    train, held_out = chosen(few, select([rows(few)], None, dataset(), 0))
    more_train, more_held_out = chosen(many, select([rows(many)], None, dataset(), 0))
    assert train <= more_train
    assert held_out <= more_held_out
    assert train | held_out == set(range(1000))
    assert 20 < len(held_out) < 90


def test_no_trained_row_is_held_out_later_even_above_the_limit() -> None:
    limited = dataset(validation={"fraction": 0.5, "maxExamples": 100})
    train, held_out = chosen(np.arange(1000), select([rows(np.arange(1000))], None, limited, 0))
    _, more_held_out = chosen(np.arange(5000), select([rows(np.arange(5000))], None, limited, 0))
    assert len(held_out) == len(more_held_out) == 100
    assert not train & more_held_out


@pytest.mark.parametrize("deduplicate", [True, False])
def test_duplicates_lie_on_one_side(deduplicate: bool) -> None:
    numbers = np.random.default_rng(2).integers(0, 300, 1000)
    selection = select([rows(numbers)], None, dataset(deduplicate=deduplicate, validation={"fraction": 0.3}), 0)
    train, held_out = chosen(numbers, selection)
    assert held_out
    assert not train & held_out
    used = (selection.fates.repeats > 0) | selection.fates.held_out
    assert used.sum() == (len(set(numbers.tolist())) if deduplicate else 1000)
    assert selection.duplicates == (1000 - len(set(numbers.tolist())) if deduplicate else 0)


@pytest.mark.parametrize(("count", "expected"), [(199, False), (200, True)])
def test_the_default_begins_at_two_hundred_rows(count: int, expected: bool) -> None:
    assert select([rows(np.arange(count))], None, dataset(), 0).fates.held_out.any() == expected


def test_a_fraction_of_zero_holds_out_none() -> None:
    assert not select([rows(np.arange(1000))], None, dataset(validation={"fraction": 0}), 0).fates.held_out.any()


def test_weights_are_met_on_average_and_by_content() -> None:
    keys = rows(np.arange(20_000)).keys
    times = repeats(keys, 2.3)
    assert set(times.tolist()) == {2, 3}
    assert times.mean() == pytest.approx(2.3, abs=0.02)
    assert repeats(keys, 0.0).max() == 0
    assert (repeats(keys[::-1], 2.3)[::-1] == times).all()
    assert repeats(keys, 100).min() == 100


def test_the_questions_asked_of_a_hash_are_independent() -> None:
    limited = rows(np.arange(20_000), max_examples=10_000)
    held_out = select([limited], None, dataset(validation={"fraction": 0.2, "maxExamples": 100_000}), 0).fates.held_out
    assert held_out.sum() == pytest.approx(2000, rel=0.1)


def test_a_sources_limit_keeps_its_rows_when_others_are_added() -> None:
    few = chosen(np.arange(500), select([rows(np.arange(500), max_examples=100)], None, dataset(), 0))
    again = chosen(np.arange(500)[::-1], select([rows(np.arange(500)[::-1], max_examples=100)], None, dataset(), 0))
    assert few == again
    assert len(few[0]) == 100


def test_of_identical_rows_that_of_the_largest_weight_is_kept() -> None:
    selection = select([rows([1, 2, 3, 3]), rows([3, 4], weight=5), rows([4, 5], weight=5)], None, dataset(), 0)
    assert selection.fates.repeats.tolist() == [1, 1, 0, 0, 5, 5, 0, 5]
    assert selection.duplicates == 3


@pytest.mark.parametrize("limited_first", [True, False])
def test_a_sources_limit_takes_no_rows_from_another(limited_first: bool) -> None:
    both = [rows(np.arange(100), max_examples=10), rows(np.arange(100))]
    selection = select(both if limited_first else both[::-1], None, dataset(), 0)
    assert selection.fates.repeats.sum() == 100
    assert selection.duplicates == 10


def test_a_sources_limit_counts_different_rows() -> None:
    selection = select([rows(np.arange(200) % 50, max_examples=40)], None, dataset(), 0)
    assert selection.fates.repeats.sum() == 40
    assert selection.duplicates == 150
    kept = select([rows(np.arange(200) % 50, max_examples=40)], None, dataset(deduplicate=False), 0)
    assert kept.fates.repeats.sum() == 40


def test_choosing_takes_less_than_fifty_bytes_a_row() -> None:
    many = rows(np.random.default_rng(3).permutation(100_000))
    tracemalloc.start()
    try:
        select([many], None, dataset(), 5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak / len(many) < 50


def test_a_separate_validation_source_takes_its_place_and_overlap_is_counted() -> None:
    separate = dataset(validation={"uri": "file:///validation", "maxExamples": 3})
    selection = select([rows(np.arange(300))], rows([299, 300, 301, 302]), separate, 2)
    assert selection.fates.repeats[:300].all()
    assert selection.fates.held_out.sum() == 3
    assert selection.fates.sample.sum() == 2
    assert (selection.fates.held_out | ~selection.fates.sample).all()
    everything = select([rows(np.arange(300))], rows([299, 300]), separate, 0)
    assert (everything.overlap_rows, everything.overlap_prompts) == (1, 1)


def test_the_first_of_identical_rows_is_the_first() -> None:
    assert first_of_each(rows([5, 3, 5, 5, 3, 9]).keys).tolist() == [True, True, False, False, False, True]
