"""A model and rows that are trained in seconds: random weights, a vocabulary of words w0, w1, …"""

from __future__ import annotations

import json
from pathlib import Path

WORDS = 64
ROWS = 32
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
CARD = "---\nlicense: apache-2.0\n---\n\nA Llama of two layers with random weights, to try a cluster with.\n"


def write_model(folder: Path) -> None:
    """A whole Hugging Face folder: config, safetensors, tokenizer, model card with its licence."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, **SIZES)).to(torch.bfloat16).save_pretrained(folder)
    special = {"unk_token": "w0", "eos_token": "w1"}
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    (folder / "README.md").write_text(CARD)


def rows() -> bytes:
    """JSON Lines: prompts and completions of a few words."""
    lines = [{"prompt": f"w{i % 50 + 2} w{i % 40 + 3}", "completion": f" w{i % 30 + 4}"} for i in range(ROWS)]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()
