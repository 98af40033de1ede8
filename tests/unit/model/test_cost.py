"""What a model costs, counted by hand for a layer small enough to count."""

from __future__ import annotations

from typing import Any

from cloister_api.spec_training import Lora, LoraTargets, Precision, TargetPreset
from cloister_trainer.model.cost import ModelCost, model_cost
from cloister_trainer.model.targets import resolve_targets
from cloister_trainer.model.tensors import TensorInfo
from support.model_folders import (
    HIDDEN,
    INTERMEDIATE,
    VOCABULARY,
    Tensors,
    config,
    deepseek_tensors,
    llama_tensors,
    mixtral_tensors,
    phi3_tensors,
    phi_tensors,
)

RANK = 4


def cost_of(
    fields: dict[str, Any] | None = None,
    tensors: Tensors | None = None,
    preset: TargetPreset = TargetPreset.AUTO,
    precision: Precision = Precision.BF16,
    *,
    on_gpus: bool = False,
    dropout: bool = False,
) -> ModelCost:
    fields = fields or config()
    infos = {name: TensorInfo(*value) for name, value in (tensors or llama_tensors()).items()}
    targets = resolve_targets(fields, infos, Lora(rank=RANK, targets=LoraTargets(preset=preset)))
    return model_cost(fields, infos, targets, precision, on_gpus=on_gpus, dropout=dropout)


def test_parameters_are_counted_once_in_layers_or_outside() -> None:
    cost = cost_of()
    assert cost.parameters == sum(TensorInfo(*value).parameters for value in llama_tensors().values())
    assert cost.other_parameters == 2 * VOCABULARY * HIDDEN + HIDDEN
    assert cost.largest_parameter == VOCABULARY * HIDDEN
    assert (cost.query_width, cost.key_value_width) == (HIDDEN, HIDDEN)


def test_a_llama_layer_keeps_what_its_backward_pass_reads() -> None:
    norms = 4 * 2 * HIDDEN
    attention = 2 * (HIDDEN + HIDDEN // 2 + HIDDEN // 2 + HIDDEN)  # queries, keys, values, what attention puts out
    mlp = 2 * 3 * INTERMEDIATE  # gate, silu of it, up
    inputs = 2 * (HIDDEN + HIDDEN + INTERMEDIATE)  # of queries, keys and values; of gate and up; of down
    ranks = 2 * 7 * RANK
    assert cost_of().layers[0].saved_bytes_per_token == norms + attention + mlp + inputs + ranks


def test_without_an_adapter_on_the_mlp_its_inputs_are_not_kept() -> None:
    difference = (
        cost_of().layers[0].saved_bytes_per_token
        - cost_of(preset=TargetPreset.ATTENTION).layers[0].saved_bytes_per_token
    )
    assert difference == 2 * (HIDDEN + INTERMEDIATE + 3 * RANK)


def test_dropout_gives_each_projection_an_input_of_its_own() -> None:
    widths = 6 * HIDDEN + INTERMEDIATE
    shared = 2 * (2 * HIDDEN + INTERMEDIATE)
    difference = cost_of(dropout=True).layers[0].saved_bytes_per_token - cost_of().layers[0].saved_bytes_per_token
    assert difference == 3 * widths - shared


def test_float32_activations_are_twice_as_large_but_for_the_norms() -> None:
    norms = 4 * 2 * HIDDEN
    bf16, fp32 = (cost_of(precision=precision).layers[0].saved_bytes_per_token for precision in Precision)
    assert fp32 - norms == 2 * (bf16 - norms)


def test_on_gpus_a_norm_in_one_kernel_keeps_its_input_as_it_came() -> None:
    elsewhere, there = (cost_of(on_gpus=on_gpus).layers[0].saved_bytes_per_token for on_gpus in (False, True))
    assert elsewhere - there == (4 - 2) * 2 * HIDDEN
    bf16, fp32 = (cost_of(precision=precision, on_gpus=True).layers[0].saved_bytes_per_token for precision in Precision)
    assert fp32 == 2 * bf16
    gemma = config("gemma", "GemmaForCausalLM")
    assert cost_of(gemma, on_gpus=True) == cost_of(gemma)


def test_fused_projections_count_like_separate_ones() -> None:
    fused = cost_of(config("phi3", "Phi3ForCausalLM"), phi3_tensors())
    assert (fused.query_width, fused.key_value_width) == (HIDDEN, HIDDEN)


def test_a_phi_layer_keeps_what_gelu_reads() -> None:
    cost = cost_of(config("phi", "PhiForCausalLM"), phi_tensors())
    assert (cost.query_width, cost.key_value_width) == (HIDDEN, HIDDEN)
    norm = 4 * HIDDEN
    attention = 2 * (HIDDEN + HIDDEN // 2 + HIDDEN // 2 + HIDDEN)  # queries, keys, values, what attention puts out
    mlp = 2 * 4 * INTERMEDIATE  # x, x/2, tanh, 1 + tanh
    inputs = 2 * (HIDDEN + HIDDEN + INTERMEDIATE)  # of queries, keys and values; of fc1; of fc2
    ranks = 2 * 6 * RANK
    assert cost.layers[0].saved_bytes_per_token == norm + attention + mlp + inputs + ranks


def test_experts_count_for_each_one_that_a_token_visits() -> None:
    one, two = (
        cost_of(config("mixtral", "MixtralForCausalLM", num_experts_per_tok=visited), mixtral_tensors())
        for visited in (1, 2)
    )
    per_visit = two.layers[0].saved_bytes_per_token - one.layers[0].saved_bytes_per_token
    assert per_visit == 2 * (2 * INTERMEDIATE + HIDDEN + HIDDEN + INTERMEDIATE + min(HIDDEN, INTERMEDIATE))
    assert one.parameters == two.parameters


def test_adapted_experts_are_counted_at_full_size() -> None:
    fields = config("mixtral", "MixtralForCausalLM", num_experts_per_tok=2)
    adapted = cost_of(fields, mixtral_tensors(), TargetPreset.ALL_WITH_EXPERTS)
    assert adapted.layers[0].adapted_expert_parameters == 4 * 3 * INTERMEDIATE * HIDDEN
    assert cost_of(fields, mixtral_tensors()).layers[0].adapted_expert_parameters == 0


def test_layers_of_different_kinds_are_counted_each() -> None:
    fields = config("deepseek_v3", "DeepseekV3ForCausalLM", num_experts_per_tok=2)
    dense, sparse = cost_of(fields, deepseek_tensors()).layers
    assert dense.parameters != sparse.parameters
    assert dense.saved_bytes_per_token != sparse.saved_bytes_per_token
