"""What a model costs in memory, as a few numbers read from names and shapes; memory.py turns them into bytes of a run.

Activations are counted tensor by tensor, as autograd keeps them for a frozen base with adapters (`W` needs no input for
its own gradient, `A` does). With e = 2 bytes (bf16) or 4 (fp32), a decoder layer keeps per token:

- 4 x width for each norm, whose input transformers keeps in float32; e x width where train runs it in one kernel, on
  GPUs in families with Family.fused_norms;
- e x width of every projection whose output a non-linear operation reads (queries, keys, values, gate, up; not those
  that only add to the residual), and e x width of what attention and silu put out;
- e x width of the input of adapted projections, once where several share it (queries, keys and values; gate and up)
  and not again for what is kept anyway (what attention puts out), and e x rank of what A makes of it. With dropout
  each projection has an input of its own, and the mask;
- routed experts: for each of the experts that a token visits its copied input, gate, up, silu, product and output.

Compare Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", section 4.1, which
counts full training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from cloister_api.spec_training import Precision
from cloister_trainer.model.families import FAMILIES
from cloister_trainer.model.targets import Targets
from cloister_trainer.model.tensors import LiveTensors, TensorInfo, layer_of, live_tensors

RESIDUAL_WRITERS = ("o_proj", "down_proj", "out_proj", "dense", "fc2")
"""Projections whose output only adds to the residual stream: it is not kept."""
ATTENTION = "self_attn"
COMPUTE_TYPES = {Precision.BF16: "bfloat16", Precision.FP32: "float32"}
"""PyTorch's names of the types of the frozen weights and of matrix products."""
NORM_BYTES = 4
GELU_TENSORS = 4
"""gelu_new in transformers' elementary operations: its input x, x/2, the tanh, and 1 + tanh."""
MASK_BYTES = 1
MOST_EXPERTS_PER_TOKEN = 256


@dataclass(frozen=True)
class LayerCost:
    """One decoder layer."""

    parameters: int
    saved_bytes_per_token: int
    """Kept for the backward pass without gradient checkpointing."""
    adapted_expert_parameters: int
    """Elements of the routed experts' weights that have an adapter."""


@dataclass(frozen=True)
class ModelCost:
    """One model with its adapter at one precision."""

    layers: tuple[LayerCost, ...]
    other_parameters: int
    """Embeddings, head and final norm."""
    largest_parameter: int
    """Elements of the largest single weight."""
    linear_parameters: int
    """Elements of the layers' linear modules, which NF4 quantises; fused experts are not among them."""
    largest_linear: int
    """Elements of the largest of these."""
    hidden: int
    vocabulary: int
    heads: int
    query_width: int
    """Heads x head size, of the layer where that is largest."""
    key_value_width: int
    """Keys and values of one token in that layer."""
    element_bytes: int
    """Of an activation or a base weight: 2 (bf16) or 4 (fp32)."""
    trainable_parameters: int

    @property
    def parameters(self) -> int:
        """All elements of the base that are loaded."""
        return self.other_parameters + sum(layer.parameters for layer in self.layers)

    @property
    def largest_layer_parameters(self) -> int:
        """Elements of the largest layer."""
        return max(layer.parameters for layer in self.layers)

    @property
    def saved_bytes_per_token(self) -> int:
        """Kept by all layers without gradient checkpointing."""
        return sum(layer.saved_bytes_per_token for layer in self.layers)

    @property
    def largest_saved_bytes_per_token(self) -> int:
        """Kept by the one layer that is being recomputed, with gradient checkpointing."""
        return max(layer.saved_bytes_per_token for layer in self.layers)


def model_cost(
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    targets: Targets,
    precision: Precision,
    *,
    on_gpus: bool,
    dropout: bool = False,
) -> ModelCost:
    """Read the numbers off config.json, safetensors headers and the resolved targets."""
    family = FAMILIES[config["model_type"]]
    live = live_tensors(family, config["num_hidden_layers"], tensors)
    element_bytes = 2 if precision is Precision.BF16 else 4
    norm_bytes = element_bytes if on_gpus and family.fused_norms else NORM_BYTES
    grouped: list[dict[str, tuple[int, ...]]] = [{} for _ in range(config["num_hidden_layers"])]
    other = 0
    for name, shape in (live.parameters | live.experts).items():
        place = layer_of(name)
        if place:
            grouped[place[0]][place[1]] = shape
        else:
            other += prod(shape)
    visited, linear = _experts_per_token(config), _linear_sizes(live)
    layers = [
        LayerCost(
            parameters=sum(prod(shape) for shape in shapes.values()),
            saved_bytes_per_token=norm_bytes * _norm_width(shapes)
            + _saved_by_base(shapes, visited, element_bytes)
            + _saved_by_adapter(f"model.layers.{number}.", shapes, targets, element_bytes, dropout=dropout),
            adapted_expert_parameters=_adapted_experts(f"model.layers.{number}.", shapes, targets),
        )
        for number, shapes in enumerate(grouped)
    ]
    attention = [_attention_widths(shapes) for shapes in grouped]
    query, key_value = max(attention)
    return ModelCost(
        layers=tuple(layers),
        other_parameters=other,
        largest_parameter=max(prod(shape) for shape in (live.parameters | live.experts).values()),
        linear_parameters=sum(linear),
        largest_linear=max(linear, default=0),
        hidden=config["hidden_size"],
        vocabulary=config["vocab_size"],
        heads=config["num_attention_heads"],
        query_width=query,
        key_value_width=key_value,
        element_bytes=element_bytes,
        trainable_parameters=targets.trainable_parameters,
    )


def _saved_by_base(shapes: Mapping[str, tuple[int, ...]], visited: int, element_bytes: int) -> int:
    saved = element_bytes * _attention_widths(shapes)[0]
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if len(shape) == 3:
            saved += element_bytes * _expert_width(module, shape) * min(visited, shape[0])
        elif len(shape) == 2 and module != name and not module.endswith(RESIDUAL_WRITERS):
            saved += element_bytes * shape[0] * _times_kept(module)
    return saved


def _saved_by_adapter(
    prefix: str, shapes: Mapping[str, tuple[int, ...]], targets: Targets, element_bytes: int, *, dropout: bool
) -> int:
    inputs: dict[tuple[str, int], int] = {}
    ranks = 0
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if len(shape) != 2 or prefix + module not in targets.ranks:
            continue
        ranks += targets.ranks[prefix + module]
        parent, _, leaf = module.rpartition(".")
        if dropout:
            inputs[module, shape[1]] = shape[1] * (element_bytes + MASK_BYTES)
        elif leaf not in RESIDUAL_WRITERS:
            inputs[parent, shape[1]] = shape[1] * element_bytes
        elif parent != ATTENTION:
            inputs[module, shape[1]] = shape[1] * element_bytes
    return sum(inputs.values()) + ranks * element_bytes


def _times_kept(module: str) -> int:
    """How many tensors of a projection's width its output leaves behind: for a gate itself and silu of it."""
    if "mlp" not in module:
        return 1
    if module.endswith("fc1"):
        return GELU_TENSORS
    return 2 if module.endswith(("gate_proj", "gate_up_proj")) else 1


def _adapted_experts(prefix: str, shapes: Mapping[str, tuple[int, ...]], targets: Targets) -> int:
    return sum(prod(shape) for name, shape in shapes.items() if prefix + name in targets.parameters)


def _norm_width(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Of the inputs of the layer's norms together. Norms of single heads see all heads' width."""
    query, key_value = _attention_widths(shapes)
    widths = []
    for name, shape in shapes.items():
        if len(shape) == 1 and name.endswith("norm.weight"):
            of_heads = {
                **dict.fromkeys(("q_norm.weight", "q_layernorm.weight"), query),
                **dict.fromkeys(("k_norm.weight", "k_layernorm.weight"), key_value // 2),
            }
            widths.append(of_heads.get(name.rpartition(".")[0].rpartition(".")[2] + ".weight", shape[0]))
    return sum(widths)


def _attention_widths(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """(width of what attention puts out, width of keys and values together) per token."""
    found = {name.rpartition(".weight")[0].rpartition(".")[2]: shape for name, shape in shapes.items()}
    out = found.get("o_proj") or found.get("out_proj") or found.get("dense") or (0, 0)
    query = out[-1]
    if "qkv_proj" in found:
        return query, max(0, found["qkv_proj"][0] - query)
    if "kv_b_proj" in found:
        return query, found["kv_b_proj"][0]
    return query, found.get("k_proj", (0,))[0] + found.get("v_proj", (0,))[0]


def _expert_width(module: str, shape: tuple[int, ...]) -> int:
    """Elements that one visited expert keeps per token for one of its two weights, whichever way round it lies."""
    if module.endswith("gate_up_proj"):
        return shape[1] + shape[2]
    return shape[1] + shape[2] + min(shape[1], shape[2])


def _linear_sizes(live: LiveTensors) -> list[int]:
    return [prod(shape) for name, shape in live.parameters.items() if layer_of(name) and len(shape) == 2]


def _experts_per_token(config: Mapping[str, Any]) -> int:
    value = config.get("num_experts_per_tok")
    return min(value, MOST_EXPERTS_PER_TOKEN) if type(value) is int and value > 0 else 2
