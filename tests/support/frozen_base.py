"""What a run's own check says of a base that kept its bits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cloister_trainer.model.config import native_config, read_config

SCALES = 3
"""Tensors beside each weight in 4 bits: its blocks' scales in 8 bits, their offset, and the scales of these."""


def assert_frozen(checks: Mapping[str, Any], model: Path, *, in_4_bits: int = 0) -> None:
    """checks.json's self-test names every parameter of the base, and the scales of those that are in 4 bits."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(native_config(read_config(model)))
    tensors = len(list(base.parameters())) + SCALES * in_4_bits
    assert checks["frozenUnchanged"]
    assert checks["selfTests"]["frozenWeights"] == f"{tensors} base tensors unchanged"
