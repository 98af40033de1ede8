"""Bases in 4 bits: tiny models of widths that bitsandbytes takes on CPUs, and what their weights stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cloister_api.spec_training import Lora, Quantization
from cloister_trainer.train.nf4 import is_quantised
from support.tiny_models import SETTINGS, save_tiny_model

BLOCK = 64
VALUES = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022833334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""Quantiles of the normal distribution, scaled to -1 ... 1 (Dettmers et al. 2023, appendix E)."""


def qlora(rank: int = 4) -> Lora:
    return Lora(rank=rank, alpha=8, quantization=Quantization.NF4)


def save_wide_model(folder: Path, model_type: str, dtype: torch.dtype = torch.float32) -> Path:
    """A tiny model all of whose linear modules take a multiple of 64 inputs."""
    head = {"head_dim": 16} if "head_dim" in SETTINGS[model_type] else {}
    return save_tiny_model(folder, model_type, dtype, hidden_size=64, intermediate_size=128, **head)


def quantised_modules(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if is_quantised(module)}


def meaning(weight: Any) -> Tensor:
    """The matrix that a weight in 4 bits stands for, float32, by the paper's formula."""
    state = weight.quant_state
    packed = weight.data.flatten()
    codes = torch.stack([packed >> 4, packed & 15], dim=1).flatten().long()
    nested = state.state2
    outer = nested.absmax.repeat_interleave(nested.blocksize)[: state.absmax.numel()]
    absmax = nested.code[state.absmax.flatten().long()] * outer + state.offset
    values = torch.tensor(VALUES, device=packed.device)[codes] * absmax.repeat_interleave(BLOCK)
    return values.view(state.shape)


def check_multiplies_by_its_meaning(layer: Any, tolerance: float, device: str = "cpu") -> None:
    """Forward and backward, against the matrix that the paper's formula gives."""
    weight = meaning(layer.weight).to(layer.compute_dtype)
    x = torch.randn(7, layer.in_features, dtype=weight.dtype, device=device, requires_grad=True)
    out = torch.randn(7, layer.out_features, dtype=weight.dtype, device=device)
    y = layer(x)
    y.backward(out)
    assert x.grad is not None
    torch.testing.assert_close(y, nn.functional.linear(x, weight, layer.bias), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(x.grad, out @ weight, atol=tolerance, rtol=tolerance)


def stock_base(folder: Path, dtype: torch.dtype, attention: str = "sdpa", device: str = "cpu") -> Any:
    """The base as the model card's lines load it.

    On CPUs with AVX-512 bitsandbytes multiplies by other bits where nobody trains; here it does not.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, quantization_config=nf4, device_map={"": device}, attn_implementation=attention
    )
    for module in quantised_modules(model).values():
        module.support_avx512bf16_for_cpu = False
    return model
