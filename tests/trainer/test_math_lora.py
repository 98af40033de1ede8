"""The adapter: where it lies, how it starts, how it is stored, and randomness that depends on nothing but names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.spec_training import Lora, LoraTargets, Precision, TargetPreset
from cloister_trainer.train.layout import collate
from cloister_trainer.train.lora import (
    add_lora,
    check_targets,
    load_adapter_state,
    save_adapter,
    trainable_parameters,
)
from cloister_trainer.train.lora_layers import adapter_disabled, lora_layers
from cloister_trainer.train.model import load_base
from support.tiny_models import ListExamples, adapter_state, gradients, save_tiny_model, targets_of, with_adapter

QUERY = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("llama"), "llama")


def test_an_adapter_is_float32_over_a_bf16_base(llama: Path) -> None:
    module = with_adapter(llama, precision=Precision.BF16)
    trainable = {id(p) for p in trainable_parameters(module.model).values()}
    types = {(id(p) in trainable, p.dtype) for p in module.parameters()}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}
    assert all(p.requires_grad == (id(p) in trainable) for p in module.parameters())


def test_a_new_adapter_depends_on_seed_and_names_alone(llama: Path) -> None:
    whole = adapter_state(with_adapter(llama).model)
    torch.rand(3)
    part = Lora(rank=4, alpha=8, targets=LoraTargets(modules=["down_proj", "q_proj"]))
    for name, tensor in adapter_state(with_adapter(llama, part).model).items():
        assert torch.equal(tensor, whole[name])
    a, b = whole[QUERY.format("A")], whole[QUERY.format("B")]
    assert float(b.abs().max()) == 0.0
    assert 0.9 / 32**0.5 < float(a.abs().max()) <= 1 / 32**0.5
    assert not torch.equal(a, whole[QUERY.format("A").replace("q_proj", "k_proj")])


def test_ranks_and_scaling_are_as_asked(llama: Path) -> None:
    lora = Lora(rank=4, alpha=8, rank_overrides={"q_proj": 2}, rank_stabilized=True)
    layers = lora_layers(with_adapter(llama, lora).model)
    query, key = layers["model.layers.1.self_attn.q_proj"], layers["model.layers.1.self_attn.k_proj"]
    assert (query.r["default"], key.r["default"]) == (2, 4)
    assert key.scaling["default"] == 8 / 4**0.5


@pytest.mark.parametrize("model_type", ["deepseek_v3", "qwen2_moe", "mixtral", "phimoe"])
def test_routed_experts_and_routers_stay_frozen_unless_asked_for(model_type: str, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path, model_type)
    names = set(lora_layers(with_adapter(base).model))
    assert names == set(targets_of(base, Lora()).modules)
    assert not [name for name in names if ".experts" in name or name.endswith((".gate", ".router"))]


def test_ranks_can_differ_in_a_mixture_of_experts(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path, "deepseek_v3")
    lora = Lora(
        rank=4,
        alpha=8,
        targets=LoraTargets(preset=TargetPreset.ALL_WITH_EXPERTS),
        rank_overrides={"*.shared_experts.*": 2, "*.experts.down_proj": 3},
    )
    layers = lora_layers(with_adapter(base, lora).model)
    assert layers["model.layers.1.mlp.shared_experts.up_proj"].r["default"] == 2
    assert layers["model.layers.1.mlp.experts.down_proj"].r["default"] == 3
    assert layers["model.layers.1.mlp.experts.gate_up_proj"].r["default"] == 4


def test_an_adapter_elsewhere_than_asked_is_refused(llama: Path) -> None:
    module = with_adapter(llama, Lora(rank=4, targets=LoraTargets(modules=["q_proj"])))
    asked = targets_of(llama, Lora(rank=4, targets=LoraTargets(modules=["q_proj", "v_proj"])))
    with pytest.raises(CloisterError, match=r"targets: .* Missing: model.layers.0.self_attn.v_proj") as failed:
        check_targets(module.model, asked)
    assert failed.value.reason is FailureReason.SELF_TEST_FAILED


def test_a_trainable_base_weight_is_refused(llama: Path) -> None:
    module = with_adapter(llama)
    module.base.lm_head.weight.requires_grad_(True)
    with pytest.raises(CloisterError, match=r"base weights are not frozen: .*embed_tokens.weight"):
        check_targets(module.model, targets_of(llama, Lora(rank=4)))


def test_a_disabled_adapter_is_the_base_and_stays_trainable(llama: Path) -> None:
    module = with_adapter(llama, random_b=True)
    plain = with_adapter(llama)
    micro_batch = collate(ListExamples([20]), (0,), "cpu")
    with adapter_disabled(module.model):
        assert float(module(micro_batch).detach()) == float(plain(micro_batch).detach())
        assert len(trainable_parameters(module.model)) == len(trainable_parameters(plain.model))
    assert float(module(micro_batch).detach()) != float(plain(micro_batch).detach())


def test_the_same_adapter_is_stored_as_the_same_bytes(llama: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        module = with_adapter(llama, random_b=True)
        save_adapter(module.model, adapter_state(module.model), tmp_path / name, "s3://models/tiny")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "s3://models/tiny"
    assert config["target_modules"] == [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]


def test_an_adapter_goes_on_from_another(llama: Path) -> None:
    trained = adapter_state(with_adapter(llama, random_b=True).model)
    module = with_adapter(llama)
    load_adapter_state(module.model, trained, "s3://adapters/one")
    assert all(torch.equal(tensor, trained[name]) for name, tensor in adapter_state(module.model).items())


def test_an_adapter_of_another_rank_is_refused(llama: Path) -> None:
    other = adapter_state(with_adapter(llama, Lora(rank=2)).model)
    with pytest.raises(CloisterError, match=r"s3://adapters/one does not fit this job's lora settings: 28 tensors"):
        load_adapter_state(with_adapter(llama).model, other, "s3://adapters/one")


def test_dropout_repeats_under_recomputation_and_by_position(llama: Path) -> None:
    module = with_adapter(llama, Lora(rank=4, alpha=8, dropout=0.5), random_b=True)
    micro_batch = collate(ListExamples([20, 30]), (0, 1), "cpu")

    def run(step: int, rank: int, turn: int) -> tuple[float, dict[str, torch.Tensor]]:
        module.set_position(step, rank, turn)
        loss = module(micro_batch)
        loss.backward()
        return float(loss.detach()), gradients(module)

    loss, plain = run(3, 0, 1)
    module.set_gradient_checkpointing(True)
    again, recomputed = run(3, 0, 1)
    assert again == loss
    assert all(torch.equal(recomputed[name], plain[name]) for name in plain)
    assert len({loss, run(4, 0, 1)[0], run(3, 1, 1)[0], run(3, 0, 2)[0]}) == 4
    with module.evaluating():
        assert run(3, 0, 1)[0] == run(4, 0, 1)[0]


def test_dropout_keeps_the_expected_share(llama: Path) -> None:
    from cloister_trainer.train.randomness import DropoutKey, StatelessDropout

    ones = torch.ones(100, 400)
    dropped = StatelessDropout(0.25, "q_proj", DropoutKey(1)).train()(ones)
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("p", [0.05, 0.1, 0.3])
def test_dropout_in_bf16_scales_by_the_nearest_number(p: float) -> None:
    """Rounding 1 / (1 - p) itself to bfloat16 would shift every input of the adapter by up to 0.2 %."""
    from cloister_trainer.train.randomness import DropoutKey, StatelessDropout

    x = torch.rand(400, 400).to(torch.bfloat16)
    dropped = StatelessDropout(p, "q_proj", DropoutKey(1)).train()(x)
    kept = dropped != 0
    factor = float(dropped[kept].double().sum() / x[kept].double().sum())
    assert factor == pytest.approx(1 / (1 - p), rel=2e-4)


def test_the_frozen_base_never_draws_at_random(tmp_path: Path) -> None:
    """phimoe's router samples, and its attention drops, in training mode."""
    module = with_adapter(save_tiny_model(tmp_path, "phimoe", attention_dropout=0.5), random_b=True)
    micro_batch = collate(ListExamples([20, 30]), (0, 1), "cpu")
    losses = {float(module(micro_batch).detach()) for _ in range(3)}
    assert len(losses) == 1


def test_fractional_alpha_is_kept(llama: Path) -> None:
    model = load_base(llama, Precision.FP32, 20)
    lora = Lora(rank=4, alpha=2.5)
    peft_model = add_lora(model, targets_of(llama, lora), lora, seed=0)
    assert next(iter(lora_layers(peft_model).values())).scaling["default"] == 2.5 / 4
