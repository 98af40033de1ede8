"""PEFT's LoRA layers with a leaner forward pass: the same function, parameters and files, fewer passes over memory.

PEFT's own casts the input to float32 and, under autocast, back, and scales the product where it is [tokens, out];
here the input is taken as it is, and the scaling falls on [tokens, rank]. Submodules are called as modules, so that
ZeRO's hooks gather their weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from peft.tuners import lora as peft_lora
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn

from cloister_trainer.train.nf4 import is_quantised
from cloister_trainer.train.randomness import DropoutKey, StatelessDropout

ADAPTER = "default"
_PREFIX = "base_model.model."


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """W x + scaling B A x, the product in the type that autocast (or the base) says."""
    result: Tensor = layer.base_layer(x, *args, **kwargs)
    if layer.disable_adapters:
        return result
    narrow = layer.lora_A[ADAPTER](layer.lora_dropout[ADAPTER](x)) * layer.scaling[ADAPTER]
    return result + layer.lora_B[ADAPTER](narrow)  # type: ignore[no-any-return]


class LeanLinear(peft_lora.Linear):  # type: ignore[misc]
    """An adapted linear module."""

    forward = _forward


class LeanWeight(ParamWrapper):  # type: ignore[misc]
    """An adapted linear module that PEFT addresses by its weight."""

    forward = _forward


@cache
def lean_4bit() -> type:
    """The class of an adapted linear module in 4 bits; PEFT has one to derive from only where bitsandbytes is."""

    class LeanLinear4bit(peft_lora.Linear4bit):  # type: ignore[misc]
        forward = _forward

    return LeanLinear4bit


def lora_layers(peft_model: nn.Module) -> dict[str, Any]:
    """Adapted layers by what they adapt, under the base model's names: a linear module, or a fused expert parameter."""
    layers: dict[str, Any] = {}
    for name, module in peft_model.named_modules():
        if isinstance(module, peft_lora.LoraLayer):
            own = name.removeprefix(_PREFIX).replace(".base_layer", "")
            layers[f"{own}.{module.parameter_name}" if adapts_experts(module) else own] = module
    return layers


def adapts_experts(layer: Any) -> bool:
    """Whether the layer adapts a fused parameter rather than a linear module."""
    return isinstance(layer, ParamWrapper) and not isinstance(layer.get_base_layer(), nn.Linear)


def make_lean(peft_model: nn.Module) -> None:
    """Give every adapted linear module the lean forward pass; fused experts keep PEFT's."""
    for layer in lora_layers(peft_model).values():
        if type(layer) is peft_lora.Linear:
            layer.__class__ = LeanLinear
        elif type(layer) is ParamWrapper and not adapts_experts(layer):
            layer.__class__ = LeanWeight
        elif is_quantised(layer.get_base_layer()):
            layer.__class__ = lean_4bit()


def add_dropout(peft_model: nn.Module, p: float, key: DropoutKey) -> None:
    """Dropout on the input of every adapted linear module; there is none for fused experts (PEFT knows none)."""
    for name, layer in lora_layers(peft_model).items():
        if not adapts_experts(layer):
            layer.lora_dropout[ADAPTER] = StatelessDropout(p, name, key)


@contextmanager
def adapter_disabled(peft_model: nn.Module) -> Iterator[None]:
    """Inside, the model is its base. PEFT's own context also switches requires_grad, under an engine's feet."""
    layers = lora_layers(peft_model).values()
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
