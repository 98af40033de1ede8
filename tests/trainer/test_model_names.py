"""The family table against the real architectures: names and shapes from a saved checkpoint equal the live model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cloister_api.run import RunSettings
from cloister_api.spec_training import Lora, LoraTargets, TargetPreset
from cloister_trainer.model.config import make_known
from cloister_trainer.model.families import FAMILIES
from cloister_trainer.model.folder import inspect_model
from cloister_trainer.model.targets import resolve_targets
from cloister_trainer.model.unsupported import UNSUPPORTED
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import open_storage
from cloister_trainer.train.lora import add_lora, trainable_parameters
from cloister_trainer.train.targets import targets_in

TINY: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "vocab_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 512,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}


def tiny_model(model_type: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    make_known(model_type)
    known = AutoConfig.for_model(model_type)
    config = AutoConfig.for_model(model_type, **{name: value for name, value in TINY.items() if hasattr(known, name)})
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_names_and_shapes_are_those_of_the_live_model(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    (tmp_path / "scratch").mkdir()
    uri = (tmp_path / "model").as_uri()
    inspected = inspect_model(open_storage(), uri, tmp_path / "scratch", "mit", RunSettings(), Reporter.silent())
    stored = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}
    assert inspected.record.base_parameters == sum(stored.values())

    lora = Lora(targets=LoraTargets(preset=TargetPreset.ALL_WITH_EXPERTS))
    targets = resolve_targets(inspected.config, inspected.tensors, lora)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    parameters = dict(model.named_parameters())
    for name in targets.modules:
        assert tuple(linear[name].weight.shape) == targets.shapes[name]
    for name in targets.parameters:
        assert tuple(parameters[name].shape) == targets.shapes[name]

    left = {name.split(".", 3)[-1] for name in linear.keys() - set(targets.modules)}
    assert left <= {"lm_head", *FAMILIES[model_type].routers}, "a linear module is neither adapted nor known as frozen"
    assert {name for name, parameter in parameters.items() if parameter.ndim == 3} == set(targets.parameters)
    modules = dict(model.named_modules())
    assert all(name in modules for name in targets.routers)


def test_what_is_called_unsupported_is_not_a_family() -> None:
    assert not FAMILIES.keys() & UNSUPPORTED.keys()


def test_every_family_is_native_in_transformers_or_has_a_class_of_ours() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    native = {name for name in FAMILIES if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    assert all(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name].endswith("ForCausalLM") for name in native)
    assert FAMILIES.keys() - native == {name for name, family in FAMILIES.items() if family.own_class}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_trainable_parameters_are_those_that_peft_makes(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path)
    lora = Lora(rank=3, targets=LoraTargets(preset=TargetPreset.ALL_WITH_EXPERTS))
    targets = targets_in(tmp_path, ["model.safetensors"], lora)
    adapted = trainable_parameters(add_lora(model.requires_grad_(False), targets, lora, seed=1))
    assert targets.trainable_parameters == sum(parameter.numel() for parameter in adapted.values())
