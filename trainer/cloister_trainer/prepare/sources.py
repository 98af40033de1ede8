"""A dataset's sources: their files, and how their rows are written."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

from cloister_api.spec_data import Dataset
from cloister_trainer.prepare.detect import PROBED_ROWS, Detected, detect
from cloister_trainer.prepare.files import DataFile, list_files
from cloister_trainer.prepare.problems import FoundProblems, RowError, not_an_object
from cloister_trainer.prepare.readers import FileError, parse_chunk, read_chunks
from cloister_trainer.storage import Storage


@dataclass(frozen=True)
class Source:
    """Files with rows of one format; `held_out` for the separate validation source."""

    uri: str
    files: list[DataFile]
    detected: Detected
    weight: float = 1.0
    max_examples: int | None = None
    held_out: bool = False


def open_sources(storage: Storage, dataset: Dataset) -> list[Source]:
    """The sources in the job's order, the separate validation source last. A source of weight 0 is not read.

    Raises CloisterError DatasetNotFound, and DatasetInvalid when no format can be told.
    """
    stated = [(s.uri, s.weight, s.max_examples) for s in dataset.sources or [] if s.weight > 0]
    if dataset.uri is not None:
        stated = [(dataset.uri, 1.0, None)]
    sources = [
        _open(storage, uri, dataset, weight=weight, max_examples=max_examples) for uri, weight, max_examples in stated
    ]
    if dataset.validation is not None and dataset.validation.uri is not None:
        sources.append(_open(storage, dataset.validation.uri, dataset, held_out=True))
    return sources


def _open(
    storage: Storage,
    uri: str,
    dataset: Dataset,
    weight: float = 1.0,
    max_examples: int | None = None,
    held_out: bool = False,
) -> Source:
    files = list_files(storage, uri)
    rows = _first_rows(storage, files[0])
    detected = detect(rows, dataset.format, dataset.columns, files[0].uri)
    return Source(uri, files, detected, weight, max_examples, held_out)


def _first_rows(storage: Storage, file: DataFile) -> list[dict[str, Any]]:
    """Up to PROBED_ROWS rows of a file that can be parsed; if there is none, its problems are raised."""
    problems = FoundProblems()
    rows: list[dict[str, Any]] = []
    try:
        for chunk in read_chunks(storage, file):
            for position, value in islice(parse_chunk(chunk), PROBED_ROWS):
                if isinstance(value, dict):
                    rows.append(value)
                else:
                    problem = value if isinstance(value, RowError) else not_an_object(value)
                    problems.add(problem.at(file.uri, position))
            if rows or problems.count:
                break
    except FileError as error:
        problems.add(error.problem)
    if not rows:
        problems.refuse()
    return rows[:PROBED_ROWS]
