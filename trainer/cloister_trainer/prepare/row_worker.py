"""What is done to a chunk of rows in a worker process: first looked at, then, when all rows are known, tokenised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cloister_api.spec_data import TooLong, TrainOn
from cloister_trainer.prepare.columns import RowFormat
from cloister_trainer.prepare.encode import Encoder
from cloister_trainer.prepare.examples import Example, fit, make_example
from cloister_trainer.prepare.formats import read_row
from cloister_trainer.prepare.problems import FoundProblems, RowError
from cloister_trainer.prepare.readers import Chunk, parse_chunk
from cloister_trainer.prepare.render import Rendered, Renderer
from cloister_trainer.prepare.rows import HASH_BYTES, Conversation, PlainText, Row, content_hash
from cloister_trainer.prepare.select import Fates, Words
from cloister_trainer.prepare.tokenizer import TokenizerKit
from cloister_trainer.records import SampleRow


@dataclass(frozen=True)
class RowOptions:
    """All that decides how a row becomes tokens."""

    kit: TokenizerKit
    train_on: TrainOn
    system_prompt: str | None
    too_long: TooLong
    max_length: int


@dataclass(frozen=True)
class ChunkToRead:
    """A chunk, and how its rows are written."""

    chunk: Chunk
    row_format: RowFormat


@dataclass(frozen=True)
class ChunkToTokenise(ChunkToRead):
    """A chunk of checked rows, and what becomes of each."""

    fates: Fates


@dataclass(frozen=True)
class ReadChunk:
    """A chunk's rows by content hash uint64 [n, 2] and prompt hash uint64 [n], its kinds of rows, and its problems."""

    hashes: Words
    prompts: Words
    rows: int
    conversations: int
    plain_prompts: int
    problems: FoundProblems


@dataclass(frozen=True)
class PackedExamples:
    """Examples one after another: tokens uint32 [sum of lengths], lengths int64 [n], spans int32 [k, 3] of (example,
    start, end), repeats uint8 [n]."""

    tokens: npt.NDArray[np.uint32]
    lengths: npt.NDArray[np.int64]
    spans: npt.NDArray[np.int32]
    repeats: npt.NDArray[np.uint8]


@dataclass
class Counts:
    """What happened to rows, in numbers."""

    truncated: int = 0
    dropped: int = 0
    split: int = 0
    rewritten: int = 0
    """Rows that became several examples because the template rewrites earlier turns."""
    merged: int = 0
    """Rows in which a token reaches over the border between prompt and completion."""
    lengths: Counter[int] = field(default_factory=Counter)
    """Examples by length in tokens, before truncation."""
    shortest_dropped: int = 0
    """Tokens of the shortest training example that was dropped for its length; 0 when none was."""

    def add(self, other: Counts) -> None:
        """Add another part's numbers."""
        self.truncated += other.truncated
        self.dropped += other.dropped
        self.split += other.split
        self.rewritten += other.rewritten
        self.merged += other.merged
        self.lengths.update(other.lengths)
        self.note_dropped(other.shortest_dropped)

    def note_dropped(self, length: int) -> None:
        """Count in the length of a dropped training example, or 0."""
        self.shortest_dropped = min(filter(None, (self.shortest_dropped, length)), default=0)


@dataclass(frozen=True)
class TokenisedChunk:
    """A chunk's examples, sample rows, numbers and problems."""

    train: PackedExamples
    validation: PackedExamples
    samples: list[SampleRow]
    counts: Counts
    problems: FoundProblems


class RowWorker:
    """Reads and tokenises chunks for one job."""

    def __init__(self, options: RowOptions) -> None:
        self._options = options
        self._encoder = Encoder(options.kit)
        self._renderer = Renderer(options.kit, options.train_on, options.system_prompt)
        self._has_template = options.kit.template is not None

    def rows(self, task: ChunkToRead, problems: FoundProblems) -> Iterator[tuple[str, Row]]:
        """Each good row with its place in the file; problems are added to the list."""
        for position, value in parse_chunk(task.chunk):
            try:
                if isinstance(value, RowError):
                    raise value
                yield position, read_row(value, task.row_format, self._has_template)
            except RowError as problem:
                problems.add(problem.at(task.chunk.file, position))

    def read(self, task: ChunkToRead) -> ReadChunk:
        """Check every row and name its content."""
        problems = FoundProblems()
        hashes, prompts = bytearray(), bytearray()
        conversations = plain_prompts = 0
        for position, row in self.rows(task, problems):
            try:
                content, prompt = content_hash(row.content()), content_hash(row.prompt_content())
            except RowError as problem:
                problems.add(problem.at(task.chunk.file, position))
                continue
            hashes += content
            prompts += prompt[: HASH_BYTES // 2]
            conversations += isinstance(row, Conversation)
            plain_prompts += isinstance(row, PlainText) and bool(row.prompt)
        words = np.frombuffer(bytes(hashes), np.uint64).reshape(-1, 2)
        rows = len(words) + problems.count
        return ReadChunk(words, np.frombuffer(bytes(prompts), np.uint64), rows, conversations, plain_prompts, problems)

    def tokenise(self, task: ChunkToTokenise) -> TokenisedChunk:
        """Render and tokenise the rows that are used."""
        problems, counts = FoundProblems(), Counts()
        rendered: list[tuple[int, str, list[Rendered]]] = []
        samples: list[SampleRow] = []
        for index, (position, row) in enumerate(self.rows(task, problems)):
            if not task.fates.repeats[index] and not task.fates.held_out[index]:
                continue
            try:
                rendered.append((index, position, self._renderer.render(row)))
                if task.fates.sample[index] and (sample := self._sample(row)) is not None:
                    samples.append(sample)
            except RowError as problem:
                problems.add(problem.at(task.chunk.file, position))
        encoded = iter(self._encoder.encode([one for _, _, several in rendered for one in several]))
        train: list[Example] = []
        validation: list[Example] = []
        for index, position, several in rendered:
            repeats, held_out = int(task.fates.repeats[index]), bool(task.fates.held_out[index])
            side = validation if held_out else train
            counts.rewritten += len(several) > 1
            parts = [next(encoded) for _ in several]
            try:
                for part in parts:
                    counts.merged += part.merged
                    fitted = self._fit(make_example(part.tokens, part.spans, max(1, repeats)), counts)
                    if not fitted and not held_out:
                        counts.note_dropped(len(part.tokens))
                    side += fitted
            except RowError as problem:
                problems.add(problem.at(task.chunk.file, position))
        return TokenisedChunk(pack(train), pack(validation), samples, counts, problems)

    def examples(self, row: Row) -> tuple[list[Example], Counts]:
        """The examples of one row, as training will see them. Raises RowError."""
        counts = Counts()
        parts = self._encoder.encode(self._renderer.render(row))
        counts.rewritten += len(parts) > 1
        counts.merged += any(part.merged for part in parts)
        return [one for part in parts for one in self._fit(make_example(part.tokens, part.spans, 1), counts)], counts

    def _fit(self, example: Example, counts: Counts) -> list[Example]:
        options = self._options
        length = len(example.tokens)
        counts.lengths[length] += 1
        fitted = fit(example, options.max_length, options.too_long, options.kit.bos_id)
        if length > options.max_length:
            counts.dropped += options.too_long is TooLong.DROP
            counts.split += options.too_long is TooLong.SPLIT
            counts.truncated += options.too_long is TooLong.TRUNCATE
        return fitted

    def _sample(self, row: Row) -> SampleRow | None:
        """A row to be answered, unless its prompt fills the whole length."""
        asked = self._renderer.prompt(row)
        if asked is None:
            return None
        [prompt] = self._encoder.encode([asked[0]])
        fits = 0 < len(prompt.tokens) < self._options.max_length
        return SampleRow(prompt=prompt.tokens.tolist(), answer=asked[1]) if fits else None


def pack(examples: list[Example]) -> PackedExamples:
    """Examples as four arrays."""
    spans = [(index, start, end) for index, example in enumerate(examples) for start, end in example.spans]
    return PackedExamples(
        tokens=np.concatenate([example.tokens for example in examples]) if examples else np.zeros(0, np.uint32),
        lengths=np.array([len(example.tokens) for example in examples], np.int64),
        spans=np.array(spans, np.int32).reshape(-1, 3),
        repeats=np.array([example.repeats for example in examples], np.uint8),
    )
