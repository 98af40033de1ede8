"""Random Llamas of published shapes with tokens of one length, as prepare leaves them: for GPUs and benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cloister_trainer.records import ModelRecord, TokenShard, TokensIndex
from support.tiny_inputs import digest_of, make_tokenizer, record_of

SMALL = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 8192,
}
LLAMA_1B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
POSITIONS = 8192
SPECIAL = 3
"""Tokens that no example holds."""


def make_random_llama(folder: Path, sizes: dict[str, Any], device: str = "cpu") -> ModelRecord:
    """A Hugging Face folder of random bfloat16 weights, drawn on `device`, and its record."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if not (folder / "config.json").exists():
        config = LlamaConfig(**sizes, max_position_embeddings=POSITIONS, tie_word_embeddings=False)
        torch.manual_seed(0)
        with torch.device(device):
            model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder, max_shard_size="100GB")
        make_tokenizer().save_pretrained(folder)
    return record_of(folder).model_copy(update={"position_limit": POSITIONS})


def make_long_tokens(folder: Path, examples: int, length: int, vocabulary: int) -> TokensIndex:
    """Examples of exactly `length` random tokens, the second half of each trained."""
    from safetensors.numpy import save_file

    name = "train-00000.safetensors"
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            "tokens": rng.integers(SPECIAL, vocabulary, examples * length, dtype=np.uint32),
            "offsets": np.arange(examples + 1, dtype=np.int64) * length,
            "labelSpans": np.array([(i, length // 2, length) for i in range(examples)], dtype=np.int32),
            "repeats": np.ones(examples, dtype=np.uint8),
        },
        folder / name,
    )
    trained = examples * (length - length // 2)
    shard = TokenShard(
        file=digest_of(folder / name, name), examples=examples, tokens=examples * length, trained_tokens=trained
    )
    return TokensIndex(
        digest="1" * 64,
        train=[shard],
        validation=[],
        epoch_examples=examples,
        epoch_tokens=shard.tokens,
        epoch_trained_tokens=trained,
        validation_examples=0,
        longest=length,
        stop_token_id=None,
        pad_token_id=0,
    )
