"""A tiny random Llama as a folder, and tokens written directly, as prepare leaves them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from cloister_trainer.records import (
    FileDigest,
    LicenseFinding,
    ListedFile,
    ModelRecord,
    TokenShard,
    TokensIndex,
)
from cloister_trainer.storage import open_storage

VOCABULARY = 64


def digest_of(path: Path, name: str) -> FileDigest:
    data = path.read_bytes()
    return FileDigest(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def make_model(folder: Path) -> ModelRecord:
    """A Llama of hidden size 32 with 2 layers and random weights, as a Hugging Face folder."""
    if not folder.exists():
        write_model(folder)
    return record_of(folder)


def write_model(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def record_of(folder: Path) -> ModelRecord:
    (weights,) = open_storage().list((folder / "model.safetensors").as_uri())
    config = json.loads((folder / "config.json").read_text())
    small = [digest_of(folder / name, name) for name in ("config.json", "tokenizer.json", "tokenizer_config.json")]
    return ModelRecord(
        uri=folder.as_uri(),
        model_type=config["model_type"],
        architecture=config["architectures"][0],
        small_files=small,
        weight_files=[ListedFile(name=weights.name, size=weights.size, etag=weights.etag)],
        header_digest="0" * 64,
        fingerprint=small[0].sha256,
        ignored_files=[],
        base_parameters=30_000,
        license=LicenseFinding(id="apache-2.0", evidence="Stated"),
        position_limit=256,
    )


def make_tokenizer() -> Any:
    """Token i is the word w<i>."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0")


def make_shard(folder: Path, name: str, examples: int, seed: int) -> TokenShard:
    """Examples of 5 to 40 tokens that count upwards, the second half of each trained: easy to learn."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    rows, spans, offsets = [], [], [0]
    for index in range(examples):
        length = int(rng.integers(5, 41))
        rows.append((rng.integers(1, VOCABULARY) + np.arange(length)) % (VOCABULARY - 1) + 1)
        spans.append((index, length // 2, length))
        offsets.append(offsets[-1] + length)
    tensors = {
        "tokens": np.concatenate(rows).astype(np.uint32),
        "offsets": np.array(offsets, dtype=np.int64),
        "labelSpans": np.array(spans, dtype=np.int32),
        "repeats": np.ones(examples, dtype=np.uint8),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name)
    return TokenShard(
        file=digest_of(folder / name, name),
        examples=examples,
        tokens=offsets[-1],
        trained_tokens=sum(end - start for _, start, end in spans),
    )


def make_tokens(folder: Path, train: int, validation: int) -> TokensIndex:
    shard = make_shard(folder, "train-00000.safetensors", train, seed=1)
    held_out = [make_shard(folder, "validation-00000.safetensors", validation, seed=2)] if validation else []
    return TokensIndex(
        digest="1" * 64,
        train=[shard],
        validation=held_out,
        epoch_examples=train,
        epoch_tokens=shard.tokens,
        epoch_trained_tokens=shard.trained_tokens,
        validation_examples=validation,
        longest=40,
        stop_token_id=None,
        pad_token_id=0,
    )
