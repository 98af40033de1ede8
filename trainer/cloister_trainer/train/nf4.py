"""QLoRA: a base whose layers' linear modules bitsandbytes holds in 4 bits (Dettmers et al. 2023).

Each block of 64 elements of a weight has a scale, and scales are held in 8 bits (double quantisation). A product
dequantises the weight into the precision's type; adapters, embeddings, norms and head are as they are without.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft.utils.integrations import get_bnb_param_type
from torch import Tensor, nn

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.model.complete import incomplete
from cloister_trainer.model.tensors import layer_of

_TRIAL_SIZE = 64
_COMPARED_ROWS = 64
_SAME = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
_TRIED_TOKENS = (1, 32)
"""On GPUs bitsandbytes multiplies a few tokens (an answer's next one) by other kernels than many."""


def loading(compute_type: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What tells transformers' from_pretrained to quantise each weight as it reads it, on `device`.

    Raises CloisterError (SPEC_INVALID) where bitsandbytes cannot.
    """
    check_available(device)
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_type,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def check_available(device: torch.device) -> None:
    """Quantise a small matrix. Raises CloisterError (SPEC_INVALID) with what bitsandbytes says where it cannot."""
    try:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        dequantize_4bit(*quantize_4bit(torch.eye(_TRIAL_SIZE, device=device), compress_statistics=True))
    except (ImportError, RuntimeError, NotImplementedError) as error:
        what = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CloisterError(
            FailureReason.SPEC_INVALID,
            f"lora.quantization is NF4, but bitsandbytes cannot quantise on this machine's {_name(device)}: "
            f"{what.rstrip('.')}. Use a machine where it can, or leave lora.quantization out.",
        ) from error


def settle(model: Any) -> Any:
    """The same model after a look at its quantised weights, which stay as they are from here on.

    Where a CPU multiplies bfloat16 (AVX-512), bitsandbytes would repack a weight in place when it is first used
    without gradients, round its scales, and multiply from then on without a backward pass.

    Raises CloisterError: SELF_TEST_FAILED unless exactly the layers' linear modules are quantised, read back as they
    are held, and multiply by that, MODEL_UNSUPPORTED where a weight had another shape in its file, which transformers
    does not look at when it quantises.
    """
    linear: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    wanted = {name for name in linear if layer_of(name)}
    quantised = {name for name, module in linear.items() if is_quantised(module)}
    if quantised != wanted:
        raise _failed(
            f"{len(quantised)} modules are held in 4 bits where the layers have {len(wanted)} linear ones, "
            f"{min(quantised ^ wanted)} among those that differ"
        )
    shapes = {name: (linear[name].out_features, linear[name].in_features) for name in sorted(quantised)}
    strange = [f"{name}.weight" for name, shape in shapes.items() if linear[name].weight.quant_state.shape != shape]
    if strange:
        raise incomplete(strange)
    for name in quantised:
        linear[name].support_avx512bf16_for_cpu = False
    for name in {shape: name for name, shape in shapes.items()}.values():
        check_reading(name, linear[name].weight)
        check_product(name, linear[name])
    return model


def check_reading(name: str, weight: Any) -> None:
    """bitsandbytes reads a weight as the formula does, in its first and last rows.

    On CPUs with AVX-512 it finds the wrong scales where 64 does not divide the number of inputs. Raises CloisterError
    (SELF_TEST_FAILED).
    """
    from bitsandbytes.functional import dequantize_4bit

    read = dequantize_4bit(weight.data, weight.quant_state)
    for rows in _ends(len(read)):
        _compare(f"reads {name}", read[rows], dequantised(weight, rows))


@torch.no_grad()
def check_product(name: str, module: Any) -> None:
    """Without gradients, as in evaluations and answers, a module multiplies by what its weight stands for.

    That is another kernel than the one that reads. Raises CloisterError (SELF_TEST_FAILED).
    """
    weight, dtype = module.weight, module.compute_dtype
    drawn = torch.randn(max(_TRIED_TOKENS), module.in_features, generator=torch.Generator().manual_seed(0))
    for tokens in _TRIED_TOKENS:
        x = drawn[:tokens].to(weight.device, dtype)
        y = module(x)
        for rows in _ends(module.out_features):
            bias = None if module.bias is None else module.bias[rows].float()
            meant = nn.functional.linear(x.float(), dequantised(weight, rows), bias)
            _compare(f"multiplies by {name}", y[:, rows], meant)


def _ends(length: int) -> tuple[slice, slice]:
    return slice(0, _COMPARED_ROWS), slice(max(0, length - _COMPARED_ROWS), length)


def _compare(what: str, found: Tensor, meant: Tensor) -> None:
    """Raises CloisterError (SELF_TEST_FAILED) where they differ by more than rounding, or by what is no number."""
    largest = meant.abs().max().clamp(min=torch.finfo(meant.dtype).tiny)  # also of a weight that is all 0
    difference = float((found.float() - meant).abs().max() / largest)
    if not difference <= _SAME[found.dtype]:
        raise _failed(
            f"on this machine's {_name(found.device)} bitsandbytes {what} with differences of {difference:.2g} of the "
            "largest element. Leave lora.quantization out"
        )


def dequantised(weight: Any, rows: slice = slice(None)) -> Tensor:
    """Those rows of the matrix that a weight in 4 bits stands for, float32 [rows, in], by the formula.

    code[4 bits] * scale of the block, where scale = code8[8 bits] * scale of 256 blocks + their mean.
    """
    state, device = weight.quant_state, weight.device
    width = state.shape[1]
    elements = torch.arange(state.shape[0], device=device)[rows, None] * width + torch.arange(width, device=device)
    pairs = weight.data.flatten()[elements // 2]
    codes = torch.where(elements % 2 == 0, pairs >> 4, pairs & 15).long()
    blocks = elements // state.blocksize
    outer = state.state2
    absmax = outer.code[state.absmax.flatten()[blocks].long()] * outer.absmax[blocks // outer.blocksize] + state.offset
    values: Tensor = torch.as_tensor(state.code, device=device)[codes] * absmax
    return values


def is_quantised(module: nn.Module) -> bool:
    """Whether the module holds its weight in 4 bits."""
    return isinstance(module, nn.Linear) and get_bnb_param_type(module.weight) == "4bit"


def quantised_weights(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name of the parameter, bitsandbytes' Params4bit) of every weight in 4 bits below `module`."""
    for name, child in module.named_modules():
        if is_quantised(child):
            yield f"{name}.weight", child.weight


def scales(weight: Any) -> dict[str, Tensor]:
    """What a weight in 4 bits is dequantised by: its blocks' scales in 8 bits, and what those are dequantised by."""
    state = weight.quant_state
    return {"absmax": state.absmax, "offset": state.offset, "nested_absmax": state.state2.absmax}


def _name(device: torch.device) -> str:
    return "CPU" if device.type == "cpu" else "GPU"


def _failed(what: str) -> CloisterError:
    return CloisterError(FailureReason.SELF_TEST_FAILED, f"Self-test quantisation: {what}.")
