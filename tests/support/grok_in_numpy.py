"""Grok-1 in numpy, written from xAI's published model.py alone, token by token and head by head, in float64.

`weights` are the tensors of a converted checkpoint by their names there. Nothing is shared with the class under test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
CAP = "max_attn_value"


def logits(config: Mapping[str, Any], weights: Mapping[str, Array], tokens: list[int]) -> Array:
    """LanguageModel.__call__: [tokens, vocabulary]."""
    embedding = weights["model.embed_tokens.weight"]
    hidden = embedding[tokens] * config["embedding_multiplier_scale"]
    for number in range(config["num_hidden_layers"]):
        layer = below(weights, f"model.layers.{number}.")
        hidden = decoder_layer(config, layer, hidden)
    normed = rms_norm(hidden, weights["model.norm.scale"], config)
    return normed @ embedding.T * config["output_multiplier_scale"]


def below(weights: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def decoder_layer(config: Mapping[str, Any], layer: Mapping[str, Array], hidden: Array) -> Array:
    """DecoderLayer.__call__: rms_norm, rms_norm_1, rms_norm_2 and rms_norm_3 in the order of their making."""
    attended = attention(config, layer, rms_norm(hidden, layer["pre_attn_norm.scale"], config))
    hidden = hidden + rms_norm(attended, layer["post_attn_norm.scale"], config)
    mixed = np.stack([experts(config, layer, token) for token in rms_norm(hidden, layer["pre_moe_norm.scale"], config)])
    return hidden + rms_norm(mixed, layer["post_moe_norm.scale"], config)


def rms_norm(hidden: Array, scale: Array, config: Mapping[str, Any]) -> Array:
    mean_squared = np.mean(np.square(hidden), axis=-1, keepdims=True)
    return scale * (hidden / np.sqrt(mean_squared + config["rms_norm_eps"]))


def attention(config: Mapping[str, Any], layer: Mapping[str, Array], hidden: Array) -> Array:
    """MultiHeadAttention.__call__: [tokens, hidden]. JAX keeps w [in, out], the checkpoint its transpose."""
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config["hidden_size"] // heads
    query = rotate((hidden @ layer["attn.q_proj.weight"].T).reshape(len(hidden), heads, size))
    key = rotate((hidden @ layer["attn.k_proj.weight"].T).reshape(len(hidden), key_heads, size))
    value = (hidden @ layer["attn.v_proj.weight"].T).reshape(len(hidden), key_heads, size)
    out = np.zeros((len(hidden), heads, size))
    for head in range(heads):
        shared = head // (heads // key_heads)  # query heads are reshaped to [key heads, group]
        for token in range(len(hidden)):
            scores = key[: token + 1, shared] @ query[token, head] * config["attn_output_multiplier"]
            scores = config[CAP] * np.tanh(scores / config[CAP])
            out[token, head] = softmax(scores) @ value[: token + 1, shared]
    return out.reshape(len(hidden), heads * size) @ layer["attn.o_proj.weight"].T


def rotate(heads: Array) -> Array:
    """RotaryEmbedding.__call__: both halves of a head turn by the same phases."""
    size = heads.shape[-1]
    frequencies = 1.0 / (10_000.0 ** (np.arange(0, size, 2) / size))
    phase = np.tile(np.outer(np.arange(len(heads)), frequencies), (1, 2))[:, None, :]
    first, second = np.split(heads, 2, axis=-1)
    return heads * np.cos(phase) + np.concatenate((-second, first), axis=-1) * np.sin(phase)


def experts(config: Mapping[str, Any], layer: Mapping[str, Array], token: Array) -> Array:
    """MoELayer for one token: softmax over all experts, then the greatest; their shares are not made to add up to 1."""
    shares = softmax(layer["moe_block.gate.weight"] @ token)
    chosen = np.argsort(-shares)[: config["num_experts_per_tok"]]
    return sum((shares[one] * dense(below(layer, f"moe_block.experts.{one}."), token) for one in chosen), 0.0 * token)


def dense(expert: Mapping[str, Array], token: Array) -> Array:
    """DenseBlock.__call__; jax.nn.gelu is the one with tanh unless it is told otherwise."""
    gate = expert["linear.weight"] @ token
    gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    return expert["linear_1.weight"] @ (gelu * (expert["linear_v.weight"] @ token))


def softmax(values: Array) -> Array:
    grown = np.exp(values - values.max())
    return grown / grown.sum()
