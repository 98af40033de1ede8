"""A tiny module that trains on one batch, and its adapter read back by stock PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cloister_trainer.train.layout import collate
from cloister_trainer.train.lora import save_adapter, trainable_parameters
from support.stock_peft import logits_as_trained, logits_of_stock
from support.tiny_models import ListExamples, adapter_state

ROUNDING = 1e-5
"""Training adds B A x to W x, where stock PEFT adds B A to a weight that it is given by name before it multiplies."""


def train(module: Any, examples: ListExamples, steps: int) -> list[float]:
    """The loss before each of `steps` steps of AdamW on all examples at once."""
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


def assert_it_reloads(module: Any, base: Path, folder: Path) -> None:
    """Stock PEFT on stock transformers has the trained model's logits: the same bits where both multiply alike."""
    save_adapter(module.model, adapter_state(module.model), folder, "s3://models/base")
    as_trained, as_peft_multiplies, attention = logits_as_trained(module)
    alone, reloaded = logits_of_stock(base, folder, attention)
    assert torch.equal(as_peft_multiplies, reloaded)
    assert float((as_trained - reloaded).abs().max()) <= ROUNDING * max(1.0, float(reloaded.abs().max()))
    assert not torch.allclose(reloaded, alone, atol=1e-3)
