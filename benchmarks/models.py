"""The models that benchmarks run on."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder."""
    from support.smollm2 import cached_folder

    return cached_folder()


def shape(name: str) -> dict[str, Any]:
    """A published Llama's sizes, as its config.json calls them."""
    from support import random_llama

    sizes: dict[str, Any] = getattr(random_llama, name)
    return sizes


def random_llama() -> Path:
    """A random Llama of 100 million parameters with SmolLM2's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "cloister" / "models" / "random-llama-100m"
    if not (folder / "model.safetensors").exists():
        config = LlamaConfig(
            vocab_size=32000,
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=10,
            num_attention_heads=12,
            num_key_value_heads=4,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
        )
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(smollm2() / name, folder / name)
    return folder
