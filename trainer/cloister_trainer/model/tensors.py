"""What safetensors headers say of a checkpoint, and the names that its tensors have in the live model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from cloister_trainer.model.families import LAYER_PREFIX, Experts, Family

DTYPE_BITS: dict[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits of one element by safetensors dtype."""

_LAYER = re.compile(r"^model\.layers\.(\d+)\.(.+)$")
_EXPERT = re.compile(r"^(.*\.experts)\.(\d+)\.([A-Za-z0-9_]+)\.weight$")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as its file's header has it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class LiveTensors:
    """The checkpoint under the live model's names: plain parameters, and routed experts fused per layer.

    `parameters` maps a parameter's name (with `.weight`) to its shape. `experts` maps the name of a fused 3-D parameter
    to its shape. `unused` names tensors of layers beyond num_hidden_layers (multi-token prediction), which
    transformers does not load.
    """

    parameters: dict[str, tuple[int, ...]]
    experts: dict[str, tuple[int, ...]]
    unused: list[str]


def layer_of(name: str) -> tuple[int, str] | None:
    """(layer, name below the layer) of `model.layers.<i>.<name>`, else None."""
    match = _LAYER.match(name)
    return (int(match[1]), match[2]) if match else None


def live_tensors(family: Family, layers: int, tensors: Mapping[str, TensorInfo]) -> LiveTensors:
    """The names and shapes that transformers' model of `layers` layers will have after loading these tensors."""
    parameters: dict[str, tuple[int, ...]] = {}
    singles: dict[tuple[str, str], dict[int, tuple[int, ...]]] = {}
    unused = []
    for stored, info in sorted(tensors.items(), key=lambda item: _natural(item[0])):
        name = renamed(family, stored)
        place = layer_of(name)
        if place and place[0] >= layers:
            unused.append(stored)
        elif family.experts and family.experts.stored and (match := _EXPERT.match(name)):
            singles.setdefault((match[1], match[3]), {})[int(match[2])] = info.shape
        else:
            parameters[name] = info.shape
    fused = _fuse(family.experts, singles) if family.experts else {}
    if family.experts:
        leaves = (f".{family.experts.gate_up}", f".{family.experts.down}")
        fused |= {name: parameters.pop(name) for name in list(parameters) if name.endswith(leaves)}
    return LiveTensors(parameters, fused, unused)


def renamed(family: Family, stored: str) -> str:
    """The live name of a tensor that the checkpoint calls `stored` (experts still one by one)."""
    for old, new in family.renames:
        stored = stored.replace(old, new)
    return stored


def _fuse(
    experts: Experts, singles: Mapping[tuple[str, str], Mapping[int, tuple[int, ...]]]
) -> dict[str, tuple[int, ...]]:
    """[experts, out, in] of every layer: gate and up of all experts on top of each other, and down."""
    if experts.stored is None:
        return {}
    gate, up, down = experts.stored
    fused: dict[str, tuple[int, ...]] = {}
    for (module, leaf), shapes in singles.items():
        shape = next(iter(shapes.values()))
        if len(shape) != 2:
            continue
        out, width = shape
        layer = module.removesuffix(".experts").removesuffix(experts.gate_up.split(".")[0])
        if leaf == gate and (module, up) in singles:
            fused[layer + experts.gate_up] = (len(shapes), 2 * out, width)
        elif leaf == down:
            fused[layer + experts.down] = (len(shapes), out, width)
    return fused


def _natural(name: str) -> list[tuple[int, int | str]]:
    """A sort key with numbers in numeric order: layers.2 before layers.10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name)]


__all__ = ["DTYPE_BITS", "LAYER_PREFIX", "LiveTensors", "TensorInfo", "layer_of", "live_tensors", "renamed"]
