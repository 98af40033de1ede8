"""The data report: what was found in a dataset and what became of it, in numbers and sentences."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from cloister_trainer.prepare.row_worker import Counts, RowOptions
from cloister_trainer.prepare.select import Selection
from cloister_trainer.prepare.survey import SurveyedSource

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
HISTOGRAM_BINS = 20
LISTED_FILES = 100
TRUNCATED_SHARE = 0.01
"""More truncated examples than this are worth a note."""

DATE_NOTE = (
    "The chat template writes the current date into every conversation: tokens of another day differ. Give a template "
    "with a fixed date in model.chatTemplate to keep them."
)
PLAIN_NOTE = (
    "prompt and completion are strings: they are joined as they are, without the model's chat template. Write them as "
    "lists of messages to use it."
)


def data_report(
    surveyed: list[SurveyedSource], selection: Selection, counts: Counts, max_length: int, notes: list[str]
) -> dict[str, Any]:
    """Everything that index.json tells about the data besides its shards; never a row's content."""
    return {
        "sources": report_sources(surveyed),
        "rows": len(selection.fates),
        "duplicates": selection.duplicates,
        "overlap": {"rows": selection.overlap_rows, "prompts": selection.overlap_prompts},
        "maxLength": max_length,
        "truncated": counts.truncated,
        "dropped": counts.dropped,
        "split": counts.split,
        "rewrittenTurns": counts.rewritten,
        "mergedBorders": counts.merged,
        "lengths": length_report(counts.lengths),
        "notes": notes,
    }


def data_notes(surveyed: list[SurveyedSource], selection: Selection, counts: Counts, options: RowOptions) -> list[str]:
    """What is worth knowing about the data before training on it, in sentences."""
    notes = []
    if options.kit.template is not None and any(one.plain_prompts for one in surveyed):
        notes.append(PLAIN_NOTE)
    examples = counts.lengths.total()
    if counts.truncated > TRUNCATED_SHARE * examples:
        notes.append(
            f"{counts.truncated} of {examples} examples were longer than {options.max_length} tokens and are cut. "
            "Raise training.maxLength to train them whole."
        )
    if counts.dropped:
        notes.append(
            f"{counts.dropped} of {examples} examples were longer than {options.max_length} tokens and left out."
        )
    if counts.rewritten:
        notes.append(
            f"In {counts.rewritten} conversations the chat template rewrites earlier turns when later ones follow; "
            "these turns became examples of their own, as the model will meet them."
        )
    if counts.merged:
        notes.append(
            f"In {counts.merged} rows a token reaches over the border between prompt and completion; it is trained. "
            "End prompts where a word ends, without a space."
        )
    if selection.overlap_rows:
        notes.append(
            f"{selection.overlap_rows} training rows are also in the validation set: its loss says too little."
        )
    return notes


def length_report(lengths: Counter[int]) -> dict[str, Any]:
    """Percentiles and a histogram of example lengths in tokens, before truncation."""
    if not lengths:
        return {}
    values = np.array(sorted(lengths), np.int64)
    counts = np.array([lengths[int(value)] for value in values], np.int64)
    cumulated = np.cumsum(counts)
    ranks = [max(1, int(np.ceil(percent / 100 * cumulated[-1]))) for percent in PERCENTILES]
    found = values[np.searchsorted(cumulated, ranks)]
    edges = np.unique(np.linspace(0, values[-1], HISTOGRAM_BINS + 1).astype(np.int64))
    bins = np.histogram(values, bins=edges, weights=counts)[0].astype(np.int64)
    return {
        "min": int(values[0]),
        "max": int(values[-1]),
        "mean": round(float((values * counts).sum() / cumulated[-1]), 1),
        "percentiles": {str(percent): int(value) for percent, value in zip(PERCENTILES, found, strict=True)},
        "histogram": {"edges": edges.tolist(), "examples": bins.tolist()},
    }


def report_sources(surveyed: list[SurveyedSource]) -> list[dict[str, Any]]:
    """Where the rows lie and how they are written."""
    return [_source(one) for one in surveyed]


def _source(surveyed: SurveyedSource) -> dict[str, Any]:
    source, detected = surveyed.source, surveyed.source.detected
    return {
        "uri": source.uri,
        "files": [file.uri for file in source.files[:LISTED_FILES]],
        "fileCount": len(source.files),
        "format": detected.row_format.format.value,
        "columns": detected.columns,
        "columnsLeftOut": list(detected.left_out),
        "rows": sum(part.rows for part in surveyed.parts),
        "weight": source.weight,
        "validation": source.held_out,
    }
