"""Routers choose experts by the numbers that transformers chooses by, although training runs under autocast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cloister_api.spec_training import Precision
from cloister_trainer.model.families import FAMILIES
from cloister_trainer.train.layout import collate
from support.tiny_models import SETTINGS, ListExamples, save_tiny_model, with_adapter

MIXTURES = [name for name in SETTINGS if FAMILIES[name].routers and not FAMILIES[name].own_class]
IN_FLOAT32 = {"deepseek_v2", "deepseek_v3", "glm4_moe"}
"""Whose routers multiply in float32."""


@pytest.mark.parametrize("model_type", MIXTURES)
def test_in_bf16_every_router_answers_as_transformers_own_does(model_type: str, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path, model_type, torch.bfloat16)
    module = with_adapter(base, precision=Precision.BF16)
    seen: dict[str, tuple[tuple[torch.Tensor, ...], Any]] = {}
    for name, router in module.base.named_modules():
        if name.endswith(tuple(f".{ending}" for ending in FAMILIES[model_type].routers)):
            router.register_forward_hook(lambda _, given, answer, name=name: seen.update({name: (given, answer)}))
    with torch.no_grad():
        module(collate(ListExamples([30, 12]), (0,), "cpu"))
    stock = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    assert seen
    for name, (given, answer) in seen.items():
        with torch.no_grad():
            expected = stock.get_submodule(name)(*given)
        for ours, theirs in zip(as_tuple(answer), as_tuple(expected), strict=True):
            assert ours.dtype is theirs.dtype and torch.equal(ours, theirs), name
        if model_type in IN_FLOAT32:
            assert as_tuple(answer)[0].dtype is torch.float32


def test_a_router_takes_what_autocast_has_made_float32(tmp_path: Path) -> None:
    """As a LayerNorm's output is on GPUs."""
    module = with_adapter(save_tiny_model(tmp_path, "phimoe", torch.bfloat16), precision=Precision.BF16)
    router = module.base.get_submodule("model.layers.0.mlp.router")
    hidden = torch.randn(7, module.base.config.hidden_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = router(hidden)
    with torch.no_grad():
        expected = type(router).forward(router, hidden.to(torch.bfloat16))
    for ours, theirs in zip(as_tuple(found), as_tuple(expected), strict=True):
        assert ours.dtype is theirs.dtype and torch.equal(ours, theirs)


def as_tuple(answer: Any) -> tuple[torch.Tensor, ...]:
    """Some routers return logits, shares and experts, others one of them."""
    return answer if isinstance(answer, tuple) else (answer,)
