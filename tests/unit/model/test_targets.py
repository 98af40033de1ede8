"""Which weights get an adapter, from names and shapes alone."""

from __future__ import annotations

from typing import Any

import pytest

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.spec_training import Lora, LoraTargets, TargetPreset
from cloister_trainer.model.targets import Targets, resolve_targets
from cloister_trainer.model.tensors import TensorInfo
from support.model_folders import (
    HIDDEN,
    INTERMEDIATE,
    Tensors,
    config,
    deepseek_tensors,
    llama_tensors,
    mixtral_tensors,
    phi3_tensors,
)

LLAMA = (config(), llama_tensors())
PHI3 = (config("phi3", "Phi3ForCausalLM"), phi3_tensors())
MIXTRAL = (config("mixtral", "MixtralForCausalLM"), mixtral_tensors())
DEEPSEEK = (config("deepseek_v3", "DeepseekV3ForCausalLM"), deepseek_tensors(layers=3))
Model = tuple[dict[str, Any], Tensors]


def resolved(model: Model, lora: Lora | None = None, **targets: Any) -> Targets:
    fields, tensors = model
    lora = lora or Lora(rank=4, targets=LoraTargets(**targets))
    return resolve_targets(fields, {name: TensorInfo(*value) for name, value in tensors.items()}, lora)


def below_layers(names: list[str]) -> set[str]:
    return {name.split(".", 3)[3] for name in names}


def test_auto_adapts_all_linear_modules_of_a_dense_model() -> None:
    targets = resolved(LLAMA)
    assert len(targets.modules) == 14
    assert below_layers(targets.modules) == {
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    }
    assert targets.parameters == []
    assert targets.modules[0].startswith("model.layers.0.")


def test_attention_leaves_the_mlp_out() -> None:
    assert below_layers(resolved(PHI3, preset=TargetPreset.ATTENTION).modules) == {
        "self_attn.qkv_proj",
        "self_attn.o_proj",
    }


def test_auto_on_a_mixture_leaves_experts_and_routers_frozen() -> None:
    targets = resolved(MIXTRAL)
    assert below_layers(targets.modules) == {f"self_attn.{name}_proj" for name in "qkvo"}
    assert targets.parameters == []
    assert targets.routers == ["model.layers.0.mlp.gate", "model.layers.1.mlp.gate"]


def test_experts_are_named_and_shaped_as_the_live_model_has_them() -> None:
    targets = resolved(MIXTRAL, preset=TargetPreset.ALL_WITH_EXPERTS)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    assert name in targets.parameters
    assert targets.shapes[name] == (4, 2 * INTERMEDIATE, HIDDEN)
    assert targets.shapes["model.layers.0.mlp.experts.down_proj"] == (4, HIDDEN, INTERMEDIATE)
    assert targets.adapter_parameters(name) == 4 * 4 * (2 * INTERMEDIATE + HIDDEN)
    assert not any("gate" in module for module in targets.modules)


def test_deepseek_adapts_dense_and_shared_mlps_and_no_layer_that_is_not_loaded() -> None:
    targets = resolved(DEEPSEEK)
    assert "model.layers.0.mlp.gate_proj" in targets.modules
    assert "model.layers.1.mlp.shared_experts.down_proj" in targets.modules
    assert "model.layers.1.self_attn.kv_a_proj_with_mqa" in targets.modules
    assert not any(".experts." in name or name.startswith("model.layers.2.") for name in targets.modules)


def test_the_trainable_parameters_of_one_module_are_rank_times_its_sides() -> None:
    targets = resolved(LLAMA, modules=["k_proj"])
    assert targets.trainable_parameters == 2 * 4 * (HIDDEN // 2 + HIDDEN)


def test_names_match_from_the_end_and_with_stars() -> None:
    assert resolved(LLAMA, modules=["layers.1.self_attn.v_proj"]).modules == ["model.layers.1.self_attn.v_proj"]
    assert len(resolved(LLAMA, modules=["self_attn.*"]).modules) == 8
    assert len(resolved(LLAMA, modules=["q_proj", "v_proj"]).modules) == 4


def test_routed_experts_answer_only_to_their_own_name() -> None:
    plain = resolved(DEEPSEEK, modules=["down_proj"])
    assert plain.parameters == []
    assert len(plain.modules) == 2
    asked = resolved(DEEPSEEK, modules=["experts.down_proj"])
    assert asked.modules == []
    assert asked.parameters == ["model.layers.1.mlp.experts.down_proj"]


def test_excluded_modules_get_none() -> None:
    targets = resolved(LLAMA, exclude=["mlp.*", "layers.0.self_attn.o_proj"])
    assert len(targets.modules) == 7
    assert "model.layers.0.self_attn.o_proj" not in targets.modules


def test_ranks_can_differ_by_name() -> None:
    lora = Lora(rank=4, rank_overrides={"mlp.*": 8, "layers.1.mlp.up_proj": 16})
    targets = resolved(LLAMA, lora)
    assert targets.ranks["model.layers.0.mlp.up_proj"] == 8
    assert targets.ranks["model.layers.1.mlp.up_proj"] == 16
    assert targets.ranks["model.layers.1.self_attn.q_proj"] == 4
    expected = sum(targets.ranks[name] * sum(targets.shapes[name]) for name in targets.modules)
    assert targets.trainable_parameters == expected


@pytest.mark.parametrize(
    ("model", "lora", "words"),
    [
        (PHI3, {"modules": ["q_proj"]}, ["lora.targets.modules names q_proj", "Near it", "self_attn.qkv_proj"]),
        (LLAMA, {"modules": ["q_proj", "nonsense"]}, ["names nonsense", "There are", "self_attn.k_proj"]),
        (LLAMA, {"modules": ["lm_head"]}, ["lm_head: embeddings and the head stay frozen"]),
        (LLAMA, {"modules": ["embed_tokens"]}, ["stay frozen"]),
        (MIXTRAL, {"modules": ["mlp.gate"]}, ["names mlp.gate", "routers, embeddings and the head stay frozen"]),
        (MIXTRAL, {"modules": ["w1"]}, ["names w1", "mlp.experts.gate_up_proj"]),
        (LLAMA, {"exclude": ["gate"]}, ["lora.targets.exclude names gate", "mlp.gate_proj"]),
        (LLAMA, {"exclude": ["*"]}, ["leaves nothing to train"]),
    ],
)
def test_a_name_that_matches_nothing_is_refused_with_the_near_ones(
    model: Model, lora: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(CloisterError) as caught:
        resolved(model, **lora)
    assert caught.value.reason is FailureReason.SPEC_INVALID
    for word in words:
        assert word in caught.value.message


def test_a_rank_for_a_module_without_adapter_is_refused() -> None:
    with pytest.raises(CloisterError) as caught:
        resolved(LLAMA, Lora(targets=LoraTargets(preset=TargetPreset.ATTENTION), rank_overrides={"up_proj": 8}))
    assert "lora.rankOverrides names up_proj" in caught.value.message
