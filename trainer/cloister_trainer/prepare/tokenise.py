"""The second pass over a dataset: the selected rows become shards, group by group."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cloister_trainer.prepare.problems import FoundProblems
from cloister_trainer.prepare.row_worker import ChunkToTokenise, RowWorker, TokenisedChunk
from cloister_trainer.prepare.select import Fates
from cloister_trainer.prepare.shards import GroupResult, GroupWriter, delete_other_groups, read_group
from cloister_trainer.prepare.survey import SurveyedSource, chunks_of
from cloister_trainer.prepare.workers import Workers
from cloister_trainer.reporter import ProgressTask
from cloister_trainer.storage import Storage

GROUP_BYTES = 64 << 20
"""Data that is tokenised together, and again when prepare is killed meanwhile."""


@dataclass(frozen=True)
class Destination:
    """Where shards go, and the digest that their records carry."""

    storage: Storage
    folder: str
    scratch: Path
    digest: str


def tokenise(
    to: Destination,
    surveyed: list[SurveyedSource],
    fates: Fates,
    workers: Workers[RowWorker],
    progress: ProgressTask,
) -> list[GroupResult]:
    """Write all groups' shards; a group with a finished record of the same digest is taken as it is.

    Groups depend on the data alone. Raises CloisterError DatasetInvalid with the first problems and the count of all;
    after the first one, rows are still checked and nothing more is written.
    """
    delete_other_groups(to.storage, to.folder, to.digest)
    problems = FoundProblems()
    results: dict[int, GroupResult] = {}
    writer: GroupWriter | None = None
    tasks = _tasks(to, surveyed, fates, results)
    for number, rows, part in workers.map(_tokenise, tasks):
        problems.merge(part.problems)
        progress.advance(rows)
        if writer is not None and writer.number != number:
            results[writer.number] = writer.finish()
            writer = None
        if problems.count:
            writer = None
            continue
        writer = writer or GroupWriter(to.storage, to.folder, to.scratch, number, to.digest)
        writer.add(part)
    problems.refuse()
    if writer is not None:
        results[writer.number] = writer.finish()
    return [results[number] for number in sorted(results)]


@dataclass(frozen=True)
class _Task:
    group: int
    chunk: ChunkToTokenise


def _tasks(
    to: Destination,
    surveyed: list[SurveyedSource],
    fates: Fates,
    results: dict[int, GroupResult],
) -> Iterator[_Task]:
    """The chunks with the fates of their rows. Groups that are finished already go to `results` instead."""
    group, size, first = 0, 0, 0
    finished = read_group(to.storage, to.folder, group)
    for one in surveyed:
        for chunk, part in zip(chunks_of(to.storage, one.source), one.parts, strict=True):
            rows = slice(first, first + part.rows)
            first += part.rows
            if finished is None:
                yield _Task(group, ChunkToTokenise(chunk, one.source.detected.row_format, fates[rows]))
            else:
                results[group] = finished
            size += chunk.size
            if size >= GROUP_BYTES:
                group, size = group + 1, 0
                finished = read_group(to.storage, to.folder, group)


def _tokenise(worker: RowWorker, task: _Task) -> tuple[int, int, TokenisedChunk]:
    return task.group, len(task.chunk.fates), worker.tokenise(task.chunk)
