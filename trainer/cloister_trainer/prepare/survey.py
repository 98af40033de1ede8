"""The first pass over a dataset: every row checked and named by its content, none tokenised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from cloister_trainer.prepare.files import DataFile
from cloister_trainer.prepare.problems import FoundProblems, Problem, no_rows
from cloister_trainer.prepare.readers import Chunk, FileError, read_chunks
from cloister_trainer.prepare.row_worker import ChunkToRead, ReadChunk, RowWorker
from cloister_trainer.prepare.select import SourceRows
from cloister_trainer.prepare.sources import Source
from cloister_trainer.prepare.workers import Workers
from cloister_trainer.reporter import ProgressTask
from cloister_trainer.storage import Storage


@dataclass
class SurveyedSource:
    """What the first pass found in a source."""

    source: Source
    parts: list[ReadChunk] = field(default_factory=list)

    def rows(self) -> SourceRows:
        """Its rows by the first 8 bytes of their hashes."""
        return SourceRows(
            np.concatenate([part.hashes[:, 0] for part in self.parts]),
            np.concatenate([part.prompts for part in self.parts]),
            self.source.weight,
            self.source.max_examples,
        )

    @property
    def conversations(self) -> int:
        """Rows for a chat template."""
        return sum(part.conversations for part in self.parts)

    @property
    def plain_prompts(self) -> int:
        """Rows with a prompt that is plain text."""
        return sum(part.plain_prompts for part in self.parts)


def survey(
    storage: Storage, sources: list[Source], workers: Workers[RowWorker], progress: ProgressTask
) -> list[SurveyedSource]:
    """Read and check every row.

    Raises CloisterError DatasetInvalid with the first problems in the order of the files, and the count of all.
    """
    problems = FoundProblems()
    found = []
    for source in sources:
        surveyed = SurveyedSource(source)
        by_file = {file.uri: FoundProblems() for file in source.files}
        rows = dict.fromkeys(by_file, 0)
        broken: list[Problem] = []
        tasks = (ChunkToRead(chunk, source.detected.row_format) for chunk in _chunks(storage, source.files, broken))
        for file, part in workers.map(_read, tasks):
            by_file[file].merge(part.problems)
            rows[file] += part.rows
            surveyed.parts.append(part)
            progress.advance(part.rows)
        for problem in broken:
            by_file[problem.file].add(problem)
        for file, in_file in by_file.items():
            if not rows[file] and not in_file.count:
                in_file.add(no_rows("no row").at(file, ""))
            problems.merge(in_file)
        found.append(surveyed)
    problems.refuse()
    return found


def chunks_of(storage: Storage, source: Source) -> Iterator[Chunk]:
    """All chunks of a source, as the survey saw them."""
    for file in source.files:
        yield from read_chunks(storage, file)


def _chunks(storage: Storage, files: list[DataFile], broken: list[Problem]) -> Iterator[Chunk]:
    """All chunks of the files; a file that cannot be read on is noted, and the next one follows."""
    for file in files:
        try:
            yield from read_chunks(storage, file)
        except FileError as problem:
            broken.append(problem.problem)


def _read(worker: RowWorker, task: ChunkToRead) -> tuple[str, ReadChunk]:
    return task.chunk.file, worker.read(task)
