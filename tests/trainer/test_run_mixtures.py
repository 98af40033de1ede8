"""Mixtures of experts at ZeRO stage 3, where every rank holds a part of every expert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.model.families import FAMILIES
from support.frozen_base import assert_frozen
from support.tiny_inputs import make_tokenizer, record_of
from support.tiny_models import save_tiny_model
from support.tiny_ranks import run_ranks
from support.tiny_run import TinyRun, make_run

WITH_EXPERTS = {"rank": 4, "alpha": 8, "targets": {"preset": "AllWithExperts"}}


def inputs_of(model_type: str, folder: Path) -> Path:
    """A tiny model of the family as `make_run` takes it."""
    model = save_tiny_model(folder / "model", model_type, dtype=torch.bfloat16)
    make_tokenizer().save_pretrained(model)
    (folder / "model.json").write_text(record_of(model).model_dump_json())
    return folder


def trained(root: Path, ranks: int, *, as_if_large: bool = False, recompute: bool = False, **settings: Any) -> TinyRun:
    """Three steps; `recompute`: with gradient checkpointing."""
    tiny = make_run(root, workers=ranks, steps=3, train=8, **settings)
    packing = FAMILIES[tiny.plan.model.model_type].packing
    plan = tiny.plan.plan.model_copy(update={"gradient_checkpointing": recompute, "packing": packing})
    tiny.plan = tiny.plan.model_copy(update={"plan": plan})
    run_ranks(tiny, ranks, as_if_large=as_if_large).end()
    return tiny


def losses(tiny: TinyRun) -> list[float]:
    return [row["loss"] for row in tiny.metrics()]


EVERY_TIME = {"mixtral": False, "deepseek_v2": False, "deepseek_v3": True}
"""Families, and whether activations are recomputed; the others are for long runs of the tests."""
MIXTURES = [
    *EVERY_TIME.items(),
    *(
        pytest.param(name, True, marks=pytest.mark.soak)
        for name, family in FAMILIES.items()
        if family.experts and name not in EVERY_TIME
    ),
]


@pytest.mark.parametrize(("model_type", "recompute"), MIXTURES)
def test_adapted_experts_train_in_shards_as_they_do_whole(model_type: str, recompute: bool, tmp_path: Path) -> None:
    (tmp_path / "inputs").mkdir()
    inputs = inputs_of(model_type, tmp_path / "inputs")
    whole = trained(tmp_path / "whole", 1, stage=2, inputs=inputs, lora=WITH_EXPERTS)
    output = {"uri": (tmp_path / "sharded" / "out").as_uri(), "mergedModel": True}
    settings = {"inputs": inputs, "lora": WITH_EXPERTS, "output": output}
    sharded = trained(tmp_path / "sharded", 2, stage=3, as_if_large=True, recompute=recompute, **settings)

    assert losses(sharded) == pytest.approx(losses(whole), abs=1e-5)
    one, other = load(whole.adapter()), load(sharded.adapter())
    assert one.keys() == other.keys()
    experts = [name for name in one if ".experts." in name]
    assert experts and all(bool(one[name].any()) for name in experts)
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, atol=1e-4, rtol=0)
    assert_frozen(sharded.checks(), inputs / "model")
    assert_merged_as_stock_peft_does(inputs / "model", sharded)


def test_a_router_one_of_whose_shards_changes_ends_the_run(tmp_path: Path) -> None:
    """Each rank sums the bits of its own shards: what another rank's router has become no other rank can see."""
    tiny = make_run(tmp_path, workers=2, stage=3, steps=3, train=8, inputs=inputs_of("mixtral", tmp_path))
    ended = run_ranks(tiny, 2, as_if_large=True, spoils="layers.1.mlp.gate.weight")
    with pytest.raises(CloisterError, match=r"frozen weights: 1 base tensors .*layers\.1\.mlp\.gate\.weight") as failed:
        ended.end()
    assert failed.value.reason is FailureReason.SELF_TEST_FAILED
    assert not tiny.stored("adapter").exists()


def assert_merged_as_stock_peft_does(base: Path, tiny: TinyRun) -> None:
    """Up to the rounding of the base's bfloat16."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    stock = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in stock.state_dict().items()}
    expected = PeftModel.from_pretrained(stock, str(tiny.stored("adapter"))).merge_and_unload().state_dict()
    found = AutoModelForCausalLM.from_pretrained(tiny.stored("merged"), dtype=torch.float32).state_dict()
    assert found.keys() == expected.keys()
    changed = [name for name in found if not torch.equal(found[name], before[name])]
    assert any(".experts." in name for name in changed) and any("attn." in name for name in changed)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=2**-7, atol=1e-6)
