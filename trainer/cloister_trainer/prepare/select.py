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
    """All rows of a source: content hashes uint64 [n, 2], and the hashes of their prompts uint64 [n]."""

    hashes: Words
    prompts: Words
    weight: float = 1.0
    max_examples: int | None = None

    def __len__(self) -> int:
        return len(self.prompts)


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
    """Deduplicate, limit, hold out and weight the rows of all sources.

    With validation.fraction f, rows with hash below f are held out, at most maxExamples of them: those with the lowest
    hashes; the others are trained. So no row that was trained is ever held out later, and a held-out row becomes a
    trained one only when new rows push it over maxExamples.
    """
    validation = dataset.validation
    limit = validation.max_examples if validation else DEFAULT_MAX_VALIDATION
    first = _first_rows(sources, dataset)
    duplicates = sum(int((~mask).sum()) for mask in first)
    hashes = np.concatenate([source.hashes for source in sources])
    candidates = np.concatenate([_limited(source, mask) for source, mask in zip(sources, first, strict=True)])
    if separate is not None:
        held_out = np.zeros(len(candidates), bool)
        [separate_first] = _first_rows([separate], dataset)
        duplicates += int((~separate_first).sum())
        separate_held_out = lowest(keyed(separate.hashes, Salt.VALIDATION), separate_first, limit)
    else:
        fraction = validation.fraction if validation else None
        if fraction is None:
            fraction = DEFAULT_FRACTION if candidates.sum() >= DEFAULT_FRACTION_FROM_ROWS else 0.0
        keys = keyed(hashes, Salt.VALIDATION)
        held_out = lowest(keys, candidates & (keys < np.uint64(int(fraction * 2**64))), limit)
        if not dataset.deduplicate:
            held_out = candidates & np.isin(keys, keys[held_out])
        separate_held_out = np.zeros(0, bool)
    weights = [repeats(source.hashes, source.weight) for source in sources]
    times = np.concatenate(weights) * (candidates & ~held_out)
    return _selection(sources, separate, times, np.concatenate([held_out, separate_held_out]), duplicates, samples)


def keyed(hashes: Words, salt: Salt) -> Words:
    """A hash's answer to a question, uniform in uint64: SplitMix64's finaliser (Steele et al. 2014) over both."""
    with np.errstate(over="ignore"):
        mixed = hashes[:, 0] + np.uint64(salt) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def first_of_each(hashes: Words) -> Mask:
    """Whether a row is the first one with its hash."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    ordered = hashes[order]
    first = np.ones(len(hashes), bool)
    first[order[1:]] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return first


def lowest(keys: Words, among: Mask, limit: int) -> Mask:
    """The `limit` rows with the lowest keys among those of a mask."""
    chosen = np.zeros(len(keys), bool)
    rows = np.flatnonzero(among)
    chosen[rows[np.argsort(keys[rows], kind="stable")[:limit]]] = True
    return chosen


def repeats(hashes: Words, weight: float) -> npt.NDArray[np.uint8]:
    """How often each row occurs in an epoch: the weight's whole part, and once more for its fraction of the rows."""
    whole = int(weight)
    threshold = np.uint64(int((weight - whole) * 2**64))
    return (whole + (keyed(hashes, Salt.WEIGHT) < threshold)).astype(np.uint8)


def _first_rows(sources: list[SourceRows], dataset: Dataset) -> list[Mask]:
    """The rows of each source that are left when only the first of identical ones is kept."""
    if not dataset.deduplicate:
        return [np.ones(len(source), bool) for source in sources]
    first = first_of_each(np.concatenate([source.hashes for source in sources]))
    return np.split(first, np.cumsum([len(source) for source in sources])[:-1])


def _limited(source: SourceRows, kept: Mask) -> Mask:
    if source.max_examples is None:
        return kept
    return lowest(keyed(source.hashes, Salt.MAX_EXAMPLES), kept, source.max_examples)


def _selection(
    sources: list[SourceRows],
    separate: SourceRows | None,
    times: npt.NDArray[np.uint8],
    held_out: Mask,
    duplicates: int,
    samples: int,
) -> Selection:
    everything = [*sources, separate] if separate is not None else sources
    hashes = np.concatenate([source.hashes for source in everything])
    prompts = np.concatenate([source.prompts for source in everything])
    times = np.concatenate([times, np.zeros(len(hashes) - len(times), np.uint8)])
    return Selection(
        Fates(times, held_out, lowest(keyed(hashes, Salt.SAMPLES), held_out, samples)),
        duplicates=duplicates,
        overlap_rows=int(np.isin(hashes[times > 0, 0], hashes[held_out, 0]).sum()),
        overlap_prompts=int(np.isin(prompts[held_out], prompts[times > 0]).sum()),
    )
