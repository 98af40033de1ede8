"""What an adapter says in stock PEFT on stock transformers, and in the model that trained it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cloister_trainer.train.attention import stock_attention
from support.tiny_models import stock_layers

IDS = torch.arange(3, 43)[None]


def logits_as_trained(module: Any) -> tuple[Tensor, Tensor, str]:
    """Logits as training multiplies, then as PEFT does, and the attention of transformers that both took."""
    with torch.no_grad(), module.evaluating(), stock_attention(module.base):
        as_trained = module.model(input_ids=IDS, use_cache=False).logits
        with stock_layers(module.model):
            as_peft_multiplies = module.model(input_ids=IDS, use_cache=False).logits
        return as_trained, as_peft_multiplies, module.base.config._attn_implementation


def logits_of_stock(base: Path, adapter: Path, attention: str) -> tuple[Tensor, Tensor]:
    """Logits of the base alone, then with the adapter that stock PEFT reads from its folder."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    stock = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation=attention).eval()
    with torch.no_grad():
        alone = stock(input_ids=IDS, use_cache=False).logits
        adapted = PeftModel.from_pretrained(stock, adapter).eval()
        return alone, adapted(input_ids=IDS, use_cache=False).logits
