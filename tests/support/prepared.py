"""A dataset on disk, prepared by the real code with a real tokenizer, and its tokens read back."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cloister_api.run import Run
from cloister_trainer.prepare.data import prepare_tokens
from cloister_trainer.prepare.tokenizer import load_tokenizer
from cloister_trainer.records import TokensIndex
from cloister_trainer.reporter import PlainConsole, Reporter
from cloister_trainer.storage import open_storage
from cloister_trainer.train.examples import Examples

TEMPLATES = Path(__file__).parent / "templates"
UID = "00000000-0000-4000-8000-000000000001"


def chat(*turns: str) -> dict[str, Any]:
    """A row of messages: user and assistant in turn."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}


def template(name: str) -> str:
    """A chat template as a model family has it."""
    return (TEMPLATES / f"{name}.jinja").read_text().rstrip("\n")


@dataclass(frozen=True)
class StoredExample:
    """An example as training reads it."""

    tokens: list[int]
    trained: list[bool]
    repeats: int


@dataclass(frozen=True)
class Prepared:
    """What prepare left, and what it said."""

    uri: str
    index: TokensIndex
    said: str

    @property
    def notes(self) -> str:
        """The data report's notes."""
        return "\n".join(self.index.report["notes"])

    def examples(self, side: str = "train") -> list[StoredExample]:
        """All stored examples of `train` or `validation`."""
        examples = Examples(Path(self.uri.removeprefix("file://")), getattr(self.index, side))
        times = np.bincount(examples.epoch_ids, minlength=len(examples))
        return [
            StoredExample(examples.tokens(i).tolist(), examples.label_mask(i).tolist(), int(times[i]))
            for i in range(len(examples))
        ]


class DataJob:
    """Files of a dataset in a folder, and runs that read them with a tokenizer."""

    def __init__(self, folder: Path, tokenizer_folder: Path) -> None:
        self.folder, self.tokenizer_folder = folder, tokenizer_folder
        self.storage = open_storage()

    def write(self, rows: Sequence[Any], name: str = "train.jsonl") -> str:
        """Rows as JSON lines; the file's URI."""
        return self.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode(), name)

    def write_bytes(self, data: bytes, name: str = "train.jsonl") -> str:
        """Bytes as they are; the file's URI."""
        path = self.folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return f"file://{path}"

    def run(self, dataset: dict[str, Any] | None = None, **spec: Any) -> Run:
        """A run on the folder's data, without validation unless it is asked for."""
        dataset = {"validation": {"fraction": 0}, **(dataset or {})}
        if "sources" not in dataset:
            dataset.setdefault("uri", f"file://{self.folder}/data")
        fields = {"model": {"uri": "file:///model"}, "output": {"uri": f"file://{self.folder}/out"}, **spec}
        identity = {"uid": UID, "namespace": "local", "name": "test"}
        return Run.model_validate({**identity, "spec": {**fields, "dataset": dataset}})

    def prepare(
        self, dataset: dict[str, Any] | None = None, *, processes: int = 1, limit: int = 2048, **spec: Any
    ) -> Prepared:
        """Prepare a run on the folder's data."""
        text = io.StringIO()
        reporter = Reporter(PlainConsole(text, width=10000))
        run = self.run(dataset, **spec)
        scratch = self.folder / "scratch"
        uri, index = prepare_tokens(run, self.storage, self.tokenizer_folder, limit, scratch, reporter, processes)
        return Prepared(uri, index, text.getvalue())

    def fresh(self) -> None:
        """Forget what was prepared."""
        shutil.rmtree(self.folder / "out", ignore_errors=True)

    def tokenizer(self) -> Any:
        """The tokenizer as transformers loads it."""
        return _load(self.tokenizer_folder)

    def trained_texts(self, example: StoredExample) -> list[str]:
        """The text of each run of trained tokens."""
        tokenizer, texts, at = self.tokenizer(), [], 0
        while at < len(example.tokens):
            end = at
            while end < len(example.tokens) and example.trained[end]:
                end += 1
            if end > at:
                texts.append(tokenizer.decode(example.tokens[at:end]))
            at = max(end, at + 1)
        return texts


@cache
def _load(folder: Path) -> Any:
    return load_tokenizer(folder, None)


def make_tokenizer(
    source: Path,
    folder: Path,
    chat_template: str | None,
    special: Sequence[str] = (),
    bos: str | None = None,
    eos: str | None = None,
) -> Path:
    """The source's tokenizer with another template, more special tokens, and, with `bos`, one that begins each text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(source, None)
    tokenizer.add_special_tokens({"additional_special_tokens": [*special, *([bos] if bos else [])]})
    if bos:
        tokenizer.bos_token = bos
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=None, special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos))]
        )
    if eos:
        tokenizer.eos_token = eos
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    return folder
