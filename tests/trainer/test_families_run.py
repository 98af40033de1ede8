"""Every family through the three real steps on one Ray: prepared, trained, published, and read by stock PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cloister_trainer.model.families import FAMILIES
from support.family_job import STEPS, Published, expected_parameters, prepare_train_publish
from support.frozen_base import assert_frozen
from support.one_ray import one_ray
from support.stock_peft import logits_as_trained, logits_of_stock

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("default::DeprecationWarning"),  # of Ray's, in its thread, which would end the run
]
WORKERS = 2
SHARDED = ["mixtral", "deepseek_v3"]
"""Mixtures that every run of the tests also trains in shards, routed experts included."""
MIXTURES = [name for name, family in FAMILIES.items() if family.experts]


@pytest.fixture(scope="module", autouse=True)
def ray_of_the_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with one_ray(WORKERS, tmp_path_factory.mktemp("ray")):
        yield


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name not in SHARDED])
def test_a_family_is_prepared_trained_and_published(model_type: str, tmp_path: Path) -> None:
    assert_whole(prepare_train_publish(tmp_path, model_type, 1, 2, "Auto"), model_type)


@pytest.mark.parametrize(
    "model_type", [pytest.param(name, marks=[] if name in SHARDED else [pytest.mark.soak]) for name in MIXTURES]
)
def test_a_mixture_and_its_experts_are_trained_in_shards(model_type: str, tmp_path: Path) -> None:
    published = prepare_train_publish(tmp_path, model_type, WORKERS, 3, "AllWithExperts")
    assert_whole(published, model_type)


@pytest.mark.soak
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_family_is_trained_by_two_workers(model_type: str, tmp_path: Path) -> None:
    stage = 3 if model_type in MIXTURES else 2
    assert_whole(prepare_train_publish(tmp_path, model_type, WORKERS, stage, "Auto"), model_type)


def assert_whole(published: Published, model_type: str) -> None:
    """The run is as asked for, the adapter is as large as the formula says, and stock PEFT says what training does."""
    family, spec = FAMILIES[model_type], published.run.spec
    assert published.plan["zeroStage"] == spec.distribution.zero_stage
    assert published.plan["packing"] is family.packing
    assert (published.checks["step"], published.checks["worldSizes"]) == (STEPS, [spec.distribution.workers])
    assert len(published.losses) == STEPS

    with_experts = spec.lora.targets.preset == "AllWithExperts"
    adapter = published.adapter()
    stock = AutoModelForCausalLM.from_pretrained(published.model)
    size = sum(tensor.numel() for tensor in adapter.values())
    assert size == published.plan["trainableParameters"]
    assert size == expected_parameters(stock, model_type, experts=with_experts)
    assert all(bool(tensor.any()) for tensor in adapter.values())
    assert any(".experts." in name for name in adapter) is with_experts
    assert not [name for name in adapter if any(f".{router}." in name for router in family.routers)]
    assert_frozen(published.checks, published.model)

    as_trained, as_peft_multiplies, attention = logits_as_trained(published.training_module())
    base, reloaded = logits_of_stock(published.model, published.folder, attention)
    assert torch.equal(as_peft_multiplies, reloaded)
    torch.testing.assert_close(as_trained, reloaded, atol=1e-5, rtol=1e-5)
    assert float((reloaded - base).abs().max()) > 1e-3
