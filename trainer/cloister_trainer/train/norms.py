"""Norms in one kernel: PyTorch's rms_norm in place of transformers' elementary operations, for GPUs.

transformers' RMSNorm runs six kernels, most of them over float32, and keeps its input in float32 for the backward pass;
PyTorch's keeps the input as it came. Both norm in float32. Llama's norm rounds to bf16 before it multiplies by the
weight, PyTorch and OLMo 2's after: in bf16 Llama's differs by a rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import unwrap
from types import CodeType, MethodType
from typing import Any

import torch
from torch import Tensor, nn


def fuse_norms(model: nn.Module) -> None:
    """Run every norm that computes what Llama's or OLMo 2's does in one kernel; others stay (see Family.fused_norms).

    Parameters, names and hooks stay, ZeRO's among them.
    """
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

    known = [_code_of(kind) for kind in (LlamaRMSNorm, Olmo2RMSNorm)]
    for module in model.modules():
        if any(_same(_code_of(type(module)), code) for code in known):
            _fuse(module)


def fused_norms(model: nn.Module) -> dict[str, nn.Module]:
    """The norms that run in one kernel, by name."""
    return {name: module for name, module in model.named_modules() if _is_fused(module)}


@contextmanager
def stock_norms(model: nn.Module) -> Iterator[None]:
    """Inside, the norms run transformers' own operations: to compare with."""
    fused = list(fused_norms(model).values())
    for module in fused:
        del module.forward
    try:
        yield
    finally:
        for module in fused:
            _fuse(module)


def _forward(norm: Any, hidden: Tensor) -> Tensor:
    """[..., width] in the type that came. Autocast would have the input in float32, and keep that."""
    with torch.autocast(hidden.device.type, enabled=False):
        return nn.functional.rms_norm(hidden, [hidden.shape[-1]], norm.weight, norm.variance_epsilon)


def _fuse(module: nn.Module) -> None:
    module.forward = MethodType(_forward, module)


def _is_fused(module: nn.Module) -> bool:
    return vars(module).get("forward") == MethodType(_forward, module)


def _code_of(kind: type[nn.Module]) -> CodeType:
    code: CodeType = unwrap(kind.forward).__code__
    return code


def _same(one: CodeType, other: CodeType) -> bool:
    """Whether both run the same instructions; transformers writes the same norm into many families' files."""
    return (one.co_code, one.co_consts, one.co_names) == (other.co_code, other.co_consts, other.co_names)
