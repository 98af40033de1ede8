"""Datasets prepared with SmolLM2's tokenizer, or with a small one that loads faster."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from support.prepared import DataJob, template
from support.smollm2_tokenizer import smollm2_tokenizer_folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2's tokenizer."""
    return smollm2_tokenizer_folder()


@pytest.fixture
def job(tmp_path: Path, smollm2: Path) -> DataJob:
    """An empty dataset, to be filled and prepared."""
    return DataJob(tmp_path, smollm2)


@pytest.fixture(scope="session")
def small_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer of bytes and SmolLM2's special tokens, with a ChatML template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, vocab_size=0, show_progress=False)
    tokenizer.train_from_iterator([], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.chat_template = template("chatml")
    folder = tmp_path_factory.mktemp("small-tokenizer")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def small_job(tmp_path: Path, small_tokenizer: Path) -> DataJob:
    """An empty dataset, to be prepared with the small tokenizer."""
    return DataJob(tmp_path, small_tokenizer)
