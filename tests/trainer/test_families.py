"""Every family: a tiny random model learns one batch, and its adapter reloads in stock PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cloister_trainer.model.families import FAMILIES
from cloister_trainer.train.attention import stock_attention
from cloister_trainer.train.layout import collate
from cloister_trainer.train.lora import save_adapter, trainable_parameters
from cloister_trainer.train.selftests import check_base_loss, check_isolation, check_moved
from support import tiny_models
from support.tiny_models import ListExamples, adapter_state, all_with_experts, save_tiny_model, with_adapter

CPU = torch.device("cpu")
PACKABLE = [name for name in tiny_models.SETTINGS if FAMILIES[name].packing]
ROUNDING = dict.fromkeys(("deepseek_v2", "deepseek_v3", "qwen2_moe", "minimax"), 1e-5)
"""Stock PEFT adds B A to a weight that it is given by name (an MLP beside routed experts) before it multiplies, and
minimax is reloaded with another kind of attention than it was trained with."""
MIXTURES = [name for name in PACKABLE if FAMILIES[name].experts is not None]


def test_every_family_has_a_tiny_model() -> None:
    assert tiny_models.SETTINGS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("model_type", PACKABLE)
def test_a_family_overfits_one_packed_batch(model_type: str, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", model_type)
    module = with_adapter(base)
    examples = ListExamples([30, 12, 25])
    assert check_isolation(module, CPU)
    assert check_base_loss(module, examples, CPU, new_adapter=True)

    start = adapter_state(module.model)
    losses = train(module, examples, steps=25)
    check_moved(start, adapter_state(module.model))
    assert losses[-1] < 0.7 * losses[0]

    assert reloaded_logits(module, base, tmp_path / "adapter") <= ROUNDING.get(model_type, 0.0)


@pytest.mark.parametrize("model_type", MIXTURES)
def test_routed_experts_train_when_asked_for(model_type: str, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", model_type)
    module = with_adapter(base, all_with_experts())
    start = adapter_state(module.model)
    losses = train(module, ListExamples([30, 12, 25]), steps=4)
    check_moved(start, adapter_state(module.model))
    assert losses[-1] < losses[0]
    assert any(".experts." in name for name in start)
    assert reloaded_logits(module, base, tmp_path / "adapter") <= ROUNDING.get(model_type, 0.0)


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if not FAMILIES[name].packing])
def test_a_family_that_cannot_be_packed_trains_one_example_at_a_time(model_type: str, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", model_type)
    module = with_adapter(base)
    examples = ListExamples([30])
    assert check_base_loss(module, examples, CPU, new_adapter=True)
    start = adapter_state(module.model)
    losses = train(module, examples, steps=25)
    check_moved(start, adapter_state(module.model))
    assert losses[-1] < 0.7 * losses[0]
    assert reloaded_logits(module, base, tmp_path / "adapter") <= ROUNDING.get(model_type, 0.0)


def train(module: Any, examples: ListExamples, steps: int) -> list[float]:
    micro_batch = collate(examples, tuple(range(len(examples))), "cpu")
    parameters = list(trainable_parameters(module.model).values())
    optimizer = torch.optim.AdamW(parameters, lr=2e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = module(micro_batch) / micro_batch.label_count
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def reloaded_logits(module: Any, base: Path, folder: Path) -> float:
    """The largest difference between the trained model's logits and those of the adapter loaded by stock PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    save_adapter(module.model, adapter_state(module.model), folder, "s3://models/base")
    stock = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    stock = PeftModel.from_pretrained(stock, folder).eval()
    ids = torch.arange(3, 43)[None]
    with torch.no_grad(), module.evaluating(), stock_attention(module.base):
        trained = module.model(input_ids=ids, use_cache=False).logits
        reloaded = stock(input_ids=ids, use_cache=False).logits
    return float((trained - reloaded).abs().max())
