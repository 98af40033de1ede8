"""Where a class of transformers cuts text otherwise than the model's tokenizer.json says, the file counts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, trainers
from transformers import AutoTokenizer

from cloister_trainer.prepare.tokenizer import read_tokenizer
from support.prepared import DataJob

TEXT = "We don't pay 1234567 in 2024.\n\n  It's x != y"
AS_QWEN = "as Qwen2Tokenizer, which cuts text otherwise than the model's tokenizer.json says"


@pytest.fixture
def misnamed(smollm2: Path, tmp_path: Path) -> Path:
    """SmolLM2's tokenizer in the folder of a Qwen 2, which transformers loads as Qwen2Tokenizer, whatever it is."""
    folder = tmp_path / "misnamed"
    shutil.copytree(smollm2, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "vocab_size": 49152}))
    return folder


def by_file(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_tokens_are_those_of_the_file(misnamed: Path) -> None:
    expected = by_file(misnamed).encode(TEXT).ids
    stock = AutoTokenizer.from_pretrained(misnamed)
    assert type(stock).__name__ == "Qwen2Tokenizer"
    assert stock.encode(TEXT) != expected
    loaded, notes = read_tokenizer(misnamed, None)
    assert loaded.encode(TEXT) == expected
    assert loaded.decode(expected) == TEXT
    assert (loaded.eos_token, loaded.chat_template) == (stock.eos_token, stock.chat_template)
    assert len(notes) == 1 and AS_QWEN in notes[0]


def test_special_tokens_that_only_the_class_knows_stay(misnamed: Path) -> None:
    (misnamed / "tokenizer_config.json").unlink()
    (misnamed / "special_tokens_map.json").unlink(missing_ok=True)
    loaded, _ = read_tokenizer(misnamed, None)
    assert loaded.eos_token == AutoTokenizer.from_pretrained(misnamed).eos_token == "<|endoftext|>"


def test_after_a_special_token_too(tmp_path: Path) -> None:
    """Llama 2's file marks the beginning of each piece; transformers' class that of the text alone."""
    own = Tokenizer(models.BPE(unk_token="<unk>"))
    own.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>"]
    own.train_from_iterator(["a thing or two"] * 9, trainers.BpeTrainer(special_tokens=special, show_progress=False))
    own.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    names = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    text = "<s>a</s>two thing"
    expected = own.encode(text, add_special_tokens=False).ids
    assert AutoTokenizer.from_pretrained(tmp_path).encode(text, add_special_tokens=False) != expected
    loaded, notes = read_tokenizer(tmp_path, None)
    assert loaded.encode(text, add_special_tokens=False) == expected
    assert len(notes) == 1 and "as LlamaTokenizer, which cuts text otherwise" in notes[0]


def test_rows_are_tokenised_by_the_file_and_each_job_is_told_of_its_own_model(
    misnamed: Path, smollm2: Path, tmp_path: Path
) -> None:
    job, cache = DataJob(tmp_path, misnamed), {"cacheUri": (tmp_path / "cache").as_uri()}
    job.write([{"prompt": "Why? ", "completion": TEXT}])
    prepared = job.prepare(cache)
    (example,) = prepared.examples()
    ids = by_file(misnamed).encode("Why? " + TEXT).ids
    assert example.tokens[: len(ids)] == ids
    assert AS_QWEN in prepared.notes
    job.tokenizer_folder = smollm2
    assert "Qwen2Tokenizer" not in job.prepare(cache).notes
    job.tokenizer_folder = misnamed
    assert AS_QWEN in job.prepare(cache).notes


def test_a_tokenizer_that_follows_its_file_needs_no_word(smollm2: Path, tmp_path: Path) -> None:
    assert read_tokenizer(smollm2, None)[1] == []
    padded = by_file(smollm2)
    padded.enable_padding(length=512)
    padded.enable_truncation(16)
    shutil.copytree(smollm2, tmp_path / "padded")
    padded.save(str(tmp_path / "padded" / "tokenizer.json"))
    assert read_tokenizer(tmp_path / "padded", None)[1] == []
