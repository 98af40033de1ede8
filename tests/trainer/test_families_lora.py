"""Adapters of every kind that `lora` asks for: as they are stored, stock PEFT says with them what training says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloister_api.spec_training import Lora
from cloister_trainer.publish.adapter_checks import check_adapter
from support.learning import assert_it_reloads
from support.tiny_models import adapter_state, save_tiny_model, with_adapter

WITH_EXPERTS = {"preset": "AllWithExperts"}
EVERY_MODEL: dict[str, dict[str, Any]] = {
    "ranks by name": {"rankOverrides": {"down_proj": 2, "o_proj": 6}},
    "ranks by layer, rank-stabilised": {
        "rankStabilized": True,
        "rankOverrides": {"model.layers.1.*": 3, "model.layers.1.mlp.*": 5},
    },
    "exclude": {"targets": {"exclude": ["o_proj", "model.layers.0.*down_proj"]}, "rankStabilized": True},
    "modules": {"targets": {"modules": ["o_proj", "model.layers.1.*up_proj"]}, "rankOverrides": {"up_proj": 6}},
}
MIXTURE: dict[str, dict[str, Any]] = {
    "experts": {"targets": WITH_EXPERTS, "rankStabilized": True, "rankOverrides": {"experts.*": 2}},
    "experts' modules": {"targets": {"modules": ["q_a_proj", "mlp.experts.*"], "exclude": ["experts.down_proj"]}},
}
CASES = {"llama": EVERY_MODEL, "deepseek_v3": EVERY_MODEL | MIXTURE}


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning")  # see add_lora
@pytest.mark.parametrize(
    ("model_type", "asked"),
    [pytest.param(name, lora, id=f"{name}, {kind}") for name, kinds in CASES.items() for kind, lora in kinds.items()],
)
def test_stock_peft_reads_ranks_scales_and_targets_as_they_were_trained(
    model_type: str, asked: dict[str, Any], tmp_path: Path
) -> None:
    base = save_tiny_model(tmp_path / "base", model_type)
    module = with_adapter(base, Lora.model_validate({"rank": 4, "alpha": 8, **asked}), random_b=True)
    assert_it_reloads(module, base, tmp_path / "adapter")
    assert check_adapter(tmp_path / "adapter", base).tensors == len(adapter_state(module.model))
