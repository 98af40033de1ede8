"""Which weights get an adapter: pure on names and shapes, the same for prepare's plan and for train's injection."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.spec_training import Lora, TargetPreset
from cloister_trainer.model.families import FAMILIES, LAYER_PREFIX, Family
from cloister_trainer.model.tensors import LiveTensors, TensorInfo, layer_of, live_tensors

EMBEDDINGS_AND_HEAD = ("model.embed_tokens", "lm_head")


@dataclass(frozen=True)
class Targets:
    """The adapted weights, under the names that transformers' live model has."""

    modules: list[str]
    """Linear modules as named_modules() has them, by layer and name: `model.layers.0.self_attn.q_proj`."""
    parameters: list[str]
    """Fused routed experts as named_parameters() has them: `model.layers.0.mlp.experts.gate_up_proj`."""
    shapes: dict[str, tuple[int, ...]]
    """Shape of each adapted weight: [out, in]; experts [experts, out, in] ([experts, in, out] where transposed)."""
    ranks: dict[str, int]
    """Rank of each adapted weight, rankOverrides applied."""
    routers: list[str] = field(default_factory=list)
    """Modules that must stay frozen because they route tokens to experts."""

    @property
    def trainable_parameters(self) -> int:
        """Elements of all A [rank, in] and B [out, rank]; for experts once per expert (PEFT's target_parameters)."""
        return sum(self.adapter_parameters(name) for name in self.shapes)

    def adapter_parameters(self, name: str) -> int:
        """Elements of A and B of one adapted weight."""
        *experts, out, width = self.shapes[name]
        return self.ranks[name] * (out + width) * (experts[0] if experts else 1)


def resolve_targets(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], lora: Lora) -> Targets:
    """The weights that `lora` adapts in the model of this config.json and these safetensors headers.

    Raises SpecInvalid when a requested or excluded name, or one in rankOverrides, matches nothing, when it names only
    weights that stay frozen (routers, embeddings, the head), or when nothing is left to adapt.
    """
    family = FAMILIES[config["model_type"]]
    live = live_tensors(family, config["num_hidden_layers"], tensors)
    linear = _linear_modules(live)
    routers = [name for name in linear if _below_layer(name) in family.routers]
    adaptable = {name: shape for name, shape in linear.items() if name not in routers}
    chosen = _requested(adaptable, live, lora) if lora.targets.modules else _preset(family, adaptable, live, lora)
    for pattern in lora.targets.exclude or ():
        matched = _matching(pattern, chosen)
        if not matched:
            raise _no_match("lora.targets.exclude", pattern, [*adaptable, *live.experts])
        chosen = [name for name in chosen if name not in matched]
    if not chosen:
        raise CloisterError(
            FailureReason.SPEC_INVALID,
            "lora.targets leaves nothing to train: every module that the preset chose is excluded. "
            "Take names out of lora.targets.exclude.",
        )
    shapes = adaptable | live.experts
    return Targets(
        modules=[name for name in chosen if name in adaptable],
        parameters=[name for name in chosen if name in live.experts],
        shapes={name: shapes[name] for name in chosen},
        ranks=_ranks(chosen, lora),
        routers=routers,
    )


def _linear_modules(live: LiveTensors) -> dict[str, tuple[int, ...]]:
    """Modules below a layer with a 2-D weight: every linear module, and none of the norms, embeddings and head."""
    return {
        name.removesuffix(".weight"): shape
        for name, shape in live.parameters.items()
        if len(shape) == 2 and name.endswith(".weight") and layer_of(name)
    }


def _preset(family: Family, adaptable: Mapping[str, tuple[int, ...]], live: LiveTensors, lora: Lora) -> list[str]:
    wanted = set(family.attention)
    if lora.targets.preset != TargetPreset.ATTENTION:
        wanted |= set(family.mlp)
    chosen = [name for name in adaptable if _below_layer(name) in wanted - set(family.frozen)]
    if lora.targets.preset == TargetPreset.ALL_WITH_EXPERTS:
        chosen += live.experts
    return chosen


def _requested(adaptable: Mapping[str, tuple[int, ...]], live: LiveTensors, lora: Lora) -> list[str]:
    """The weights that lora.targets.modules names. Routed experts answer only to a name that says `experts.`."""
    found: set[str] = set()
    for pattern in lora.targets.modules or ():
        matched = _matching(pattern, adaptable)
        if "experts." in pattern:
            matched |= _matching(pattern, live.experts)
        if not matched:
            raise _no_match("lora.targets.modules", pattern, [*adaptable, *live.experts])
        found |= matched
    return [name for name in [*adaptable, *live.experts] if name in found]


def _ranks(chosen: Iterable[str], lora: Lora) -> dict[str, int]:
    """lora.rank, or the rank of the last override that matches."""
    ranks = dict.fromkeys(chosen, lora.rank)
    for pattern, rank in (lora.rank_overrides or {}).items():
        matched = _matching(pattern, ranks)
        if not matched:
            raise _no_match("lora.rankOverrides", pattern, list(ranks))
        ranks |= dict.fromkeys(matched, rank)
    return ranks


def _matching(pattern: str, names: Iterable[str]) -> set[str]:
    """Names that equal the pattern or end with it after a dot; `*` stands for any characters."""
    return {name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")}


def _no_match(field_path: str, pattern: str, names: list[str]) -> CloisterError:
    if _matching(pattern, EMBEDDINGS_AND_HEAD):
        sentence = f"{field_path} names {pattern}: embeddings and the head stay frozen. Take it out."
        return CloisterError(FailureReason.SPEC_INVALID, sentence)
    short = list(dict.fromkeys(_below_layer(name) for name in names))
    leaves = {name.rpartition(".")[2]: name for name in short}
    near = [leaves[leaf] for leaf in difflib.get_close_matches(pattern.rpartition(".")[2], leaves, n=3)]
    names_text = ", ".join(near or short[:24])
    return CloisterError(
        FailureReason.SPEC_INVALID,
        f"{field_path} names {pattern}, which matches no weight of this model that can be adapted "
        f"(routers, embeddings and the head stay frozen). {'Near it' if near else 'There'} are: {names_text}.",
    )


def _below_layer(name: str) -> str:
    place = layer_of(name)
    return place[1] if place else name.removeprefix(LAYER_PREFIX)
