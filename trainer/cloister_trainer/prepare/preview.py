"""A few rows as the model will see them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from cloister_api.run import Run
from cloister_trainer.prepare.encode import Encoder
from cloister_trainer.prepare.examples import Example
from cloister_trainer.prepare.job import row_options
from cloister_trainer.prepare.problems import FoundProblems, RowError
from cloister_trainer.prepare.row_worker import ChunkToRead, RowWorker
from cloister_trainer.prepare.rows import Conversation
from cloister_trainer.prepare.sources import open_sources
from cloister_trainer.prepare.survey import chunks_of
from cloister_trainer.prepare.template import ChatTemplate
from cloister_trainer.storage import Storage


@dataclass(frozen=True)
class PreviewRow:
    """One example: its ids, whether each carries loss, the text in pieces of equal treatment, and what befell it."""

    tokens: list[int]
    trained: list[bool]
    pieces: list[tuple[str, bool]]
    format: str
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Preview:
    """Examples, and how they were made."""

    rows: list[PreviewRow]
    format: str
    """The detected format with its columns."""
    template: str
    """Which chat template renders the rows."""
    stop_token: str | None
    """The token that ends an answer."""


def preview(run: Run, storage: Storage, model_folder: Path, position_limit: int, count: int) -> Preview:
    """The first examples of the dataset. Raises CloisterError as prepare_tokens does."""
    options = row_options(run.spec, storage, model_folder, position_limit)
    source = open_sources(storage, run.spec.dataset)[0]
    worker = RowWorker(options)
    encoder = Encoder(options.kit)
    problems = FoundProblems()
    chunk = next(chunks_of(storage, source))
    rows: list[PreviewRow] = []
    conversations = False
    for position, row in islice(worker.rows(ChunkToRead(chunk, source.detected.row_format), problems), count):
        conversations = conversations or isinstance(row, Conversation)
        try:
            examples, counts = worker.examples(row)
        except RowError as problem:
            problems.add(problem.at(chunk.file, position))
            continue
        notes = ["Cut to training.maxLength."] if counts.truncated else []
        notes += ["A token reaches over the border between prompt and completion."] if counts.merged else []
        notes += (
            ["The chat template rewrites earlier turns: the row becomes several examples."] if counts.rewritten else []
        )
        name = source.detected.row_format.format.value
        rows += [_preview_row(encoder, example, name, notes) for example in examples]
    problems.refuse()
    template = ChatTemplate(options.kit) if conversations else None
    own = "the model's own" if run.spec.model.chat_template is None else "model.chatTemplate"
    return Preview(
        rows=rows[:count],
        format=source.detected.describe(),
        template=own if template else "none; the rows are plain text",
        stop_token=template.tail.terminator if template else options.kit.eos_token,
    )


def _preview_row(encoder: Encoder, example: Example, name: str, notes: list[str]) -> PreviewRow:
    trained = [False] * len(example.tokens)
    pieces, at = [], 0
    for start, end in [*example.spans, (len(trained), len(trained))]:
        pieces += [(encoder.decode(example.tokens[at:start].tolist()), False)] if start > at else []
        pieces += [(encoder.decode(example.tokens[start:end].tolist()), True)] if end > start else []
        trained[start:end] = [True] * (end - start)
        at = end
    return PreviewRow(example.tokens.tolist(), trained, pieces, name, notes)
