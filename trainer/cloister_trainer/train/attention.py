"""Attention over packed segments: each token sees the tokens before it in its own segment, and no others.

Registered with transformers under the name `cloister`. No mask is registered beside it, so transformers builds none
(a mask would be quadratic in the packed length, and finding the segments would make the host wait for the device).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason

NAME = "cloister"
_FLASH_TYPES = (torch.bfloat16, torch.float16)
_FLASH_HEAD_DIMENSION = 256
_PRODUCTS_LENGTH = 512
_UNSUPPORTED = {"softcap": "soft-capped attention", "s_aux": "attention sinks", "position_bias": "attention biases"}


@dataclass(frozen=True)
class Segments:
    """Where the segments of a packed row lie."""

    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    """int32 [segments + 1] on the device."""
    _biases: dict[tuple[int, int | None], Tensor] = field(default_factory=dict, repr=False, compare=False)

    def bias(self, length: int, window: int | None, repeats: int, dtype: torch.dtype) -> Tensor:
        """[1, repeats * length, length]: 0 where a token sees another, else -inf; made once for all layers."""
        if (length, window) not in self._biases:
            seen = _seen(length, window, self.cu_seqlens.device)
            bias = torch.zeros(length, length, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
            self._biases[length, window] = bias.repeat(repeats, 1).unsqueeze(0)
        return self._biases[length, window]

    @property
    def longest(self) -> int:
        """Tokens of the longest segment."""
        return max(self.lengths)


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    segments: Segments | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within segments, as transformers' AttentionInterface calls it.

    Shapes: query [1, H, T, D], key [1, KV, T, D], value [1, KV, T, V]; returns ([1, T, H, V], None). `segments` comes
    through the model's keyword arguments, so a recomputation under gradient checkpointing sees the same.
    """
    for name, words in _UNSUPPORTED.items():
        if kwargs.get(name) is not None:
            raise _unsupported(module, f"uses {words}")
    if segments is None:
        raise _unsupported(module, "does not hand keyword arguments down to its attention layers")
    if attention_mask is not None:
        raise _unsupported(module, "builds an attention mask of its own")
    window = sliding_window if sliding_window is not None and sliding_window < segments.longest else None
    attend = _flash if _flash_computes(query) else _per_segment
    return attend(query, key, value, segments, scaling=scaling, window=window), None


def _flash_computes(query: Tensor) -> bool:
    width = query.shape[-1]
    return query.is_cuda and query.dtype in _FLASH_TYPES and width <= _FLASH_HEAD_DIMENSION and width % 8 == 0


def _flash(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, *, scaling: float | None, window: int | None
) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.varlen import varlen_attn

    width = value.shape[-1]
    if width != query.shape[-1]:  # multi-head latent attention: the kernel wants one head dimension
        value = pad(value, (0, query.shape[-1] - width))
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # cuDNN's plans every new packed length anew
        out = varlen_attn(
            q,
            k,
            v,
            segments.cu_seqlens,
            segments.cu_seqlens,
            segments.longest,
            segments.longest,
            scale=scaling,
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=q.shape[1] != k.shape[1],
        )
    return cast(Tensor, out)[..., :width].unsqueeze(0)


def _per_segment(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, *, scaling: float | None, window: int | None
) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    by_products = query.device.type == "cpu" and query.dtype in _FLASH_TYPES
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    parts = zip(*(torch.split(x, list(segments.lengths), dim=2) for x in (query, key, value)), strict=True)
    outputs = []
    for q, k, v in parts:
        length = q.shape[2]
        limit = window if window is not None and length > window else None
        if by_products and length <= _PRODUCTS_LENGTH:
            out = _attend_by_products(q, k, v, segments, scale, limit)
        else:
            mask = None if limit is None else _seen(length, limit, q.device)
            out = scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
            )
        outputs.append(out.transpose(1, 2))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def _attend_by_products(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float, window: int | None
) -> Tensor:
    """Attention of one short segment by two batched products, heads that share keys as rows of one matrix.

    On CPUs the fused bf16 kernel takes two to four times as long on so few tokens; the probabilities that this keeps
    for the backward pass are small.
    """
    groups, length = k.shape[1], q.shape[2]
    rows = q.reshape(groups, -1, q.shape[-1])
    bias = segments.bias(length, window, rows.shape[1] // length, q.dtype)
    scores = torch.baddbmm(bias, rows, k.squeeze(0).transpose(1, 2), alpha=scale)
    out = torch.bmm(torch.softmax(scores, dim=-1).to(v.dtype), v.squeeze(0))
    return out.view(1, q.shape[1], length, -1)


def _seen(length: int, window: int | None, device: torch.device) -> Tensor:
    """bool [length, length]: a token sees itself and the tokens before it, at most `window` in all."""
    ones = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return ones if window is None else ones.triu(1 - window)


def implementation_for(config: Any, longest: int) -> str:
    """The attention implementation to load a model with: ours, or transformers' own for what ours does not compute.

    That is soft-capping, attention sinks, chunks, layers that are not softmax attention, and a sliding window that the
    family applies in its mask alone, where an example (`longest` tokens) could be longer. transformers' own finds
    segments by positions that start again at 0, and needs memory quadratic in the packed length.
    """
    own = (
        config.model_type in _SINKS
        or getattr(config, "attn_logit_softcapping", None) is not None
        or getattr(config, "attention_chunk_size", None) is not None
        or any(kind not in _LAYER_KINDS for kind in getattr(config, "layer_types", None) or ())
        or (config.model_type in _WINDOW_ONLY_IN_MASK and (config.sliding_window or longest) < longest)
    )
    return "eager" if own else NAME


_LAYER_KINDS = ("full_attention", "sliding_attention")
_SINKS = frozenset({"gpt_oss"})
_WINDOW_ONLY_IN_MASK = frozenset({"phimoe"})


def _unsupported(module: nn.Module, what: str) -> CloisterError:
    config: Any = module.config
    return CloisterError(
        FailureReason.MODEL_UNSUPPORTED,
        f"The model type {config.model_type} {what}, which training on packed examples does not support. Use another "
        "model.",
    )


@contextmanager
def stock_attention(model: Any) -> Iterator[None]:
    """Inside, the model attends as transformers does by default (masks, key-value cache): for generation."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    ours = [config for config in configs.values() if getattr(config, "_attn_implementation", None) == NAME]
    for config in ours:
        config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        for config in ours:
            config._attn_implementation = NAME


def register() -> None:
    """Make the name `cloister` known to transformers; again and again does no harm."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, segment_attention)
