"""A dataset's sources: their files, and how their rows are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cloister_api.spec_data import Dataset
from cloister_trainer.prepare.detect import PROBED_ROWS, Detected, ProbedRows, detect
from cloister_trainer.prepare.files import DataFile, list_files
from cloister_trainer.prepare.problems import FoundProblems, RowError, no_rows, not_an_object
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
    detected = detect(_first_rows(storage, files), dataset.format, dataset.columns)
    return Source(uri, files, detected, weight, max_examples, held_out)


def _first_rows(storage: Storage, files: list[DataFile]) -> ProbedRows:
    """Up to PROBED_ROWS rows of the first file with any that can be parsed; without one, all problems are raised."""
    problems = FoundProblems()
    for file in files:
        if rows := _parsed_rows(storage, file, problems):
            return ProbedRows(file.uri, rows)
    problems.refuse()
    raise AssertionError("a file without rows is a problem")


def _parsed_rows(storage: Storage, file: DataFile, problems: FoundProblems) -> list[tuple[str, dict[str, Any]]]:
    """Up to PROBED_ROWS rows of the first chunk with any; problems are added to the list."""
    rows: list[tuple[str, dict[str, Any]]] = []
    before = problems.count
    try:
        for chunk in read_chunks(storage, file):
            for position, value in parse_chunk(chunk):
                if isinstance(value, dict):
                    rows.append((position, value))
                else:
                    problem = value if isinstance(value, RowError) else not_an_object(value)
                    problems.add(problem.at(file.uri, position))
                if len(rows) == PROBED_ROWS:
                    return rows
            if rows:
                return rows
    except FileError as error:
        problems.add(error.problem)
    if problems.count == before:
        problems.add(no_rows("no row").at(file.uri, ""))
    return rows
