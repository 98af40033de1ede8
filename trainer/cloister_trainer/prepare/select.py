"""Chooses, by content hash alone, which rows are trained, how often, and which are held out.

A choice by hash does not depend on the order or the number of rows: adding rows to a dataset moves none of the others.
Each question asks the hash with its own salt, so that the answers are independent of each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from cloister_api.spec_data import Dataset

Words = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

DEFAULT_FRACTION = 0.05
DEFAULT_FRACTION_FROM_ROWS = 200
DEFAULT_MAX_VALIDATION = 500


class Salt(IntEnum):
    """The question that is asked of a hash."""

    VALIDATION = 1
    WEIGHT = 2
    MAX_EXAMPLES = 3
    SAMPLES = 4


@dataclass(frozen=True)
class SourceRows:
    """All rows of a source: keys uint64 [n] that name their contents, and keys of their prompts uint64 [n].

    Among a thousand million different rows, two have the same key with a chance of 3 %: then one counts as the other's
    duplicate.
    """

    keys: Words
    prompts: Words
    weight: float = 1.0
    max_examples: int | None = None

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Fates:
    """What becomes of each row: repeats uint8 [n] in an epoch (0: not trained), held out, answered as a sample."""

    repeats: npt.NDArray[np.uint8]
    held_out: Mask
    sample: Mask

    def __getitem__(self, rows: slice) -> Fates:
        return Fates(self.repeats[rows], self.held_out[rows], self.sample[rows])

    def __len__(self) -> int:
        return len(self.repeats)


@dataclass(frozen=True)
class Selection:
    """Fates of all rows, sources one after another, the separate validation source last."""

    fates: Fates
    duplicates: int
    overlap_rows: int
    """Trained rows that are also held out."""
    overlap_prompts: int
    """Held-out rows whose prompt is also trained."""


def select(sources: list[SourceRows], separate: SourceRows | None, dataset: Dataset, samples: int) -> Selection:
    """Limit, deduplicate, hold out and weight the rows of all sources.

    With validation.fraction f, rows with hash below f are held out, at most maxExamples of them: those with the lowest
    hashes; the others are trained. So no row that was trained is ever held out later, and a held-out row becomes a
    trained one only when new rows push it over maxExamples.
    """
    everything = [*sources, separate] if separate is not None else sources
    keys = np.concatenate([source.keys for source in everything])
    trained = sum(len(source) for source in sources)
    candidates, duplicates = _candidates(sources, keys[:trained], dataset.deduplicate)
    held_out = np.zeros(len(keys), bool)
    if separate is not None:
        first = _first_rows(separate.keys, dataset.deduplicate)
        duplicates += int((~first).sum())
        held_out[trained:] = lowest(keyed(separate.keys, Salt.VALIDATION), first, _most_held_out(dataset))
    else:
        held_out[:] = _held_out(keys, candidates, dataset)
    times = np.zeros(len(keys), np.uint8)
    times[:trained] = np.concatenate([repeats(source.keys, source.weight) for source in sources]) * candidates
    times[held_out] = 0
    fates = Fates(times, held_out, lowest(keyed(keys, Salt.SAMPLES), held_out, samples))
    overlap_rows = among(keys[times > 0], keys[held_out]).sum()
    del keys
    prompts = np.concatenate([source.prompts for source in everything])
    overlap_prompts = among(prompts[held_out], prompts[times > 0]).sum()
    return Selection(fates, duplicates, int(overlap_rows), int(overlap_prompts))


def keyed(keys: Words, salt: Salt) -> Words:
    """A key's answer to a question, uniform in uint64: SplitMix64's finaliser (Steele et al. 2014) over both."""
    with np.errstate(over="ignore"):
        mixed = keys + np.uint64(salt) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(30)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(27)
        mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def first_of_each(keys: Words) -> Mask:
    """Whether a row is the first one with its key."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = np.ones(len(keys), bool)
    first[order[1:]] = ordered[1:] != ordered[:-1]
    return first


def among(keys: Words, some: Words) -> Mask:
    """Whether each key is one of some. np.isin takes several times the memory."""
    if not len(some):
        return np.zeros(len(keys), bool)
    ordered = np.sort(some)
    return np.asarray(ordered.take(np.searchsorted(ordered, keys), mode="clip") == keys)


def lowest(keys: Words, among: Mask, limit: int) -> Mask:
    """The `limit` rows with the lowest keys among those of a mask."""
    chosen = np.zeros(len(keys), bool)
    rows = np.flatnonzero(among)
    chosen[rows[np.argsort(keys[rows], kind="stable")[:limit]]] = True
    return chosen


def repeats(keys: Words, weight: float) -> npt.NDArray[np.uint8]:
    """How often each row occurs in an epoch: the weight's whole part, and once more for its fraction of the rows."""
    whole = int(weight)
    threshold = np.uint64(int((weight - whole) * 2**64))
    return (whole + (keyed(keys, Salt.WEIGHT) < threshold)).astype(np.uint8)


def _first_rows(keys: Words, deduplicate: bool) -> Mask:
    return first_of_each(keys) if deduplicate else np.ones(len(keys), bool)


def _candidates(sources: list[SourceRows], keys: Words, deduplicate: bool) -> tuple[Mask, int]:
    """The rows that a source's limit and deduplication leave, and the number of duplicates.

    Each source is limited by itself. Of identical rows that are then left, the one with the largest weight is kept,
    the first of these.
    """
    kept = np.ones(len(keys), bool)
    ends = np.cumsum([len(source) for source in sources])
    parts = [slice(end - len(source), end) for source, end in zip(sources, ends.tolist(), strict=True)]
    duplicates = 0
    for source, part in zip(sources, parts, strict=True):
        if source.max_examples is not None:
            first = _first_rows(source.keys, deduplicate)
            duplicates += int((~first).sum())
            kept[part] = lowest(keyed(source.keys, Salt.MAX_EXAMPLES), first, source.max_examples)
    if deduplicate:
        by_weight = sorted(range(len(sources)), key=lambda index: -sources[index].weight)
        rows = np.concatenate([parts[index].start + np.flatnonzero(kept[parts[index]]) for index in by_weight])
        first = first_of_each(keys[rows])
        duplicates += int((~first).sum())
        kept[rows] = first
    return kept, duplicates


def _most_held_out(dataset: Dataset) -> int:
    return dataset.validation.max_examples if dataset.validation else DEFAULT_MAX_VALIDATION


def _held_out(keys: Words, candidates: Mask, dataset: Dataset) -> Mask:
    """The candidates that are held out for their hash; duplicates, where they are kept, lie on one side."""
    fraction = dataset.validation.fraction if dataset.validation else None
    if fraction is None:
        fraction = DEFAULT_FRACTION if candidates.sum() >= DEFAULT_FRACTION_FROM_ROWS else 0.0
    answers = keyed(keys, Salt.VALIDATION)
    below = candidates & (answers < np.uint64(int(fraction * 2**64)))
    held_out = lowest(answers, below, _most_held_out(dataset))
    return held_out if dataset.deduplicate else candidates & among(answers, answers[held_out])
