"""Where a class of transformers cuts text otherwise than the model's tokenizer.json says, the file counts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from cloister_trainer.prepare.tokenizer import load_tokenizer
from support.prepared import DataJob

TEXT = "We don't pay 1234567 in 2024.\n\n  It's x != y"


@pytest.fixture
def misnamed(smollm2: Path, tmp_path: Path) -> Path:
    """SmolLM2's tokenizer in the folder of a Qwen 2, which transformers loads as Qwen2Tokenizer, whatever it is."""
    folder = tmp_path / "misnamed"
    shutil.copytree(smollm2, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "vocab_size": 49152}))
    return folder


def test_tokens_are_those_of_the_file(misnamed: Path) -> None:
    expected = Tokenizer.from_file(str(misnamed / "tokenizer.json")).encode(TEXT).ids
    stock = AutoTokenizer.from_pretrained(misnamed)
    assert type(stock).__name__ == "Qwen2Tokenizer"
    assert stock.encode(TEXT) != expected
    loaded = load_tokenizer(misnamed, None)
    assert loaded.encode(TEXT) == expected
    assert loaded.decode(expected) == TEXT
    assert (loaded.eos_token, loaded.chat_template) == (stock.eos_token, stock.chat_template)


def test_rows_are_tokenised_by_the_file_and_the_data_report_says_so(misnamed: Path, tmp_path: Path) -> None:
    job = DataJob(tmp_path, misnamed)
    job.write([{"prompt": "Why? ", "completion": TEXT}])
    prepared = job.prepare()
    (example,) = prepared.examples()
    ids = Tokenizer.from_file(str(misnamed / "tokenizer.json")).encode("Why? " + TEXT).ids
    assert example.tokens[: len(ids)] == ids
    assert "as Qwen2Tokenizer, which cuts text otherwise than the model's tokenizer.json says" in prepared.notes


def test_a_tokenizer_that_follows_its_file_needs_no_word(smollm2: Path) -> None:
    notes: list[str] = []
    load_tokenizer(smollm2, None, notes)
    assert not notes
