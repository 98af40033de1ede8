"""Which folders hold Grok-1 as the class in grok.py computes it; what they hold otherwise, in a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

MODEL_TYPE = "grok-1"
REQUIRED = ("attn_output_multiplier", "embedding_multiplier_scale", "output_multiplier_scale")
"""Multipliers without which the model is another function."""
EXPERTS = ("num_experts", "num_local_experts")
"""Fields that say how many experts there are; one is enough."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "residual_moe": (False,),
    "moe_intermediate_size": (),
    "router_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "attn_logit_softcapping_method": ("tanh",),
    "attn_temperature_len": (0, -1),
    "hidden_act": ("gelu_pytorch_tanh", "gelu_new"),
    "tie_word_embeddings": (True,),
    "rope_theta": (10_000,),
    "partial_rotary_factor": (1,),
    "rope_type": ("default", "original"),
    "rope_scaling": (),
    "rope_rotate_half_dims": (False,),
    "sliding_window": (0,),
}
"""Fields that change the mathematics, those of Grok-2 among them, with the values that do not; null never does."""
ROTARY: dict[str, Any] = {"rope_type": "default", "rope_theta": 10_000, "partial_rotary_factor": 1}
"""What rope_parameters may state."""
_PICKLE = re.compile(r"(^|/)tensor\d{5}_\d{3}$")
PICKLED = (
    "holds Grok-1 as xAI published it, in pickles, which can run code when they are loaded: Cloister never loads them. "
    "Take a copy that was converted to safetensors, or convert it once on a trusted machine to the names that "
    "docs/grok-1.md lists, and upload that."
)


def holds_published_pickles(names: Iterable[str]) -> bool:
    """Whether files are called as those of xAI's folder ckpt-0."""
    return any(_PICKLE.search(name) for name in names)


def why_not_grok_1(config: Mapping[str, Any]) -> str | None:
    """What in a config.json with this model_type is not Grok-1 as it was published, as the end of a sentence."""
    lacking = [name for name in REQUIRED if type(config.get(name)) not in (int, float)]
    if not any(type(config.get(name)) is int for name in EXPERTS):
        lacking.append(EXPERTS[0])
    if lacking:
        return f"has no {lacking[0]}, which config.json of a converted Grok-1 states"
    for name, neutral in NEUTRAL.items():
        if config.get(name) is not None and config[name] not in neutral:
            return f"has {name} {config[name]!r:.60}, which Grok-1 as it was published does not have"
    rope = config.get("rope_parameters")
    if rope is not None and (not isinstance(rope, dict) or any(rope.get(k, v) != v for k, v in ROTARY.items())):
        return "has rope_parameters that change the rotary positions, which Grok-1 as it was published does not have"
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    width = config.get("head_dim")
    if width is not None and (type(heads) is not int or type(width) is not int or heads * width != hidden):
        return f"has head_dim {width!r:.20}, but hidden_size of Grok-1 is num_attention_heads times it"
    return None
