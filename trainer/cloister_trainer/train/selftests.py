"""What must hold before and while a run trains; a check that fails ends the run with SelfTestFailed and its name.

Each function returns a sentence of what it saw, for checks.json.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.train.attention import stock_attention
from cloister_trainer.train.examples import Examples
from cloister_trainer.train.layout import ExampleSource, collate
from cloister_trainer.train.lora_layers import adapter_disabled
from cloister_trainer.train.model import TrainingModule
from cloister_trainer.train.nf4 import quantised_weights, scales
from cloister_trainer.train.norms import stock_norms

_SEGMENTS = (24, 17, 31)
_MOST_LABELS = 64
_MIXED_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
_STOCK_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


def check_isolation(module: TrainingModule, device: torch.device) -> str:
    """Packed segments do not see each other: other tokens in one leave the hidden states of the others bit-equal.

    In a mixture of experts the others' tokens change which rows are multiplied together, and so the rounding; there
    the largest relative difference must be small. A collective at stage 3.
    """
    first = _Synthetic(module.base.config.vocab_size, changed=False)
    changed = _Synthetic(module.base.config.vocab_size, changed=True)
    with torch.no_grad(), module.evaluating(), module.precision(device):
        before = module.hidden_states(collate(first, (0, 1, 2), device))
        after = module.hidden_states(collate(changed, (0, 1, 2), device))
    middle = slice(_SEGMENTS[0], _SEGMENTS[0] + _SEGMENTS[1])
    if torch.equal(before[middle], after[middle]):
        raise _failed("isolation", "changing a segment's tokens does not change its own hidden states")
    others = [slice(0, middle.start), slice(middle.stop, None)]
    difference = max(_relative_difference(before[part], after[part]) for part in others)
    allowed = _MIXED_TOLERANCE[_compute_type(before)] if _is_mixture(module) else 0.0
    if difference > allowed:
        raise _failed(
            "isolation",
            f"changing one packed example's tokens changes another's hidden states by {difference:.2g} of their size; "
            f"at most {allowed:g} is rounding. Set training.packing to Never",
        )
    return f"other segments differ by {difference:.2g}"


def check_base_loss(module: TrainingModule, examples: Examples, device: torch.device, *, new_adapter: bool) -> str:
    """The first loss is the base model's own: the adapter starts without effect, and transformers finds the same loss.

    The reference is transformers' forward pass with its own attention, norms and head on the shortest example, up to
    its 64th label token, so these and the label positions are all compared. `new_adapter` is false for one that goes
    on from another. A collective at stage 3.
    """
    example = int(np.argmin(np.where(examples.trained > 0, examples.lengths, np.iinfo(np.int64).max)))
    micro_batch = collate(_Beginning(examples), (example,), device)
    with torch.no_grad(), module.evaluating():
        ours = module(micro_batch)
        with adapter_disabled(module.model):
            without = module(micro_batch)
        with stock_attention(module.base), stock_norms(module.base), module.precision(device):
            positions = micro_batch.label_positions
            logits = module.base(micro_batch.input_ids, logits_to_keep=positions, use_cache=False).logits[0]
        stock = nn.functional.cross_entropy(logits.float(), micro_batch.labels, reduction="sum")
    values = [float(value) / max(1, micro_batch.label_count) for value in (ours, without, stock)]
    if new_adapter and values[0] != values[1]:
        raise _failed("base loss", f"a new adapter changes the loss from {values[1]:.6g} to {values[0]:.6g}")
    tolerance = (_MIXED_TOLERANCE if _is_mixture(module) else _STOCK_TOLERANCE)[_compute_type(logits)]
    if abs(values[0] - values[2]) > tolerance * max(1.0, abs(values[2])):
        raise _failed("base loss", f"transformers finds a loss of {values[2]:.6g} where training finds {values[0]:.6g}")
    return f"loss {values[0]:.4f}, transformers' {values[2]:.4f}"


def check_moved(start: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> str:
    """After two steps every adapter tensor has moved and is finite (B moves first; A's gradient is 0 while B is 0)."""
    stuck = [name for name, tensor in now.items() if torch.equal(tensor, start[name])]
    if stuck:
        raise _failed("movement", f"{len(stuck)} of {len(now)} adapter tensors have not moved, {stuck[0]} among them")
    check_finite(now)
    return f"{len(now)} tensors moved"


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Every tensor holds finite numbers only."""
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise _failed("movement", f"{len(broken)} adapter tensors are not finite, {broken[0]} among them")


def frozen_checksums(module: nn.Module) -> dict[str, int]:
    """The sum of each frozen parameter's raw bits as integers; at stage 3 of this rank's shard.

    What is held in 4 bits counts with its scales.
    """
    frozen = {name: _bits(parameter) for name, parameter in module.named_parameters() if not parameter.requires_grad}
    for name, weight in quantised_weights(module):
        frozen |= {f"{name}.{part}": _bits(tensor) for part, tensor in scales(weight).items()}
    if not frozen:
        return {}
    sums = torch.stack([bits.sum(dtype=torch.int64) for bits in frozen.values()])
    return dict(zip(frozen, sums.tolist(), strict=True))


def check_frozen(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """The base's weights are what they were when training began."""
    changed = [name for name in before if before[name] != after.get(name)]
    if changed:
        raise _failed("frozen weights", f"{len(changed)} base tensors have changed, {changed[0]} among them")
    return f"{len(before)} base tensors unchanged"


def _bits(parameter: Tensor) -> Tensor:
    data = (parameter.ds_tensor if hasattr(parameter, "ds_tensor") else parameter).detach()
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[data.element_size()]
    return data.contiguous().view(integer)


def _relative_difference(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max() / a.float().abs().max())


def _compute_type(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.dtype is torch.float32 else torch.bfloat16


def _is_mixture(module: TrainingModule) -> bool:
    return any(name.endswith(".experts") for name, _ in module.base.named_modules())


class _Synthetic:
    """Three examples of fixed random tokens; `changed` gives the second other ones."""

    def __init__(self, vocabulary: int, changed: bool) -> None:
        self._vocabulary = vocabulary
        self._changed = changed

    def tokens(self, index: int) -> NDArray[np.uint32]:
        seed = index + 100 if self._changed and index == 1 else index
        return np.random.default_rng(seed).integers(0, self._vocabulary, _SEGMENTS[index]).astype(np.uint32)

    def label_mask(self, index: int) -> NDArray[np.bool_]:
        return np.zeros(_SEGMENTS[index], dtype=bool)


class _Beginning:
    """Examples up to their 64th label token: few logits, which the memory plan need not know of."""

    def __init__(self, examples: ExampleSource) -> None:
        self._examples = examples

    def tokens(self, index: int) -> NDArray[np.uint32]:
        return self._examples.tokens(index)[: self._end(index)]

    def label_mask(self, index: int) -> NDArray[np.bool_]:
        return self._examples.label_mask(index)[: self._end(index)]

    def _end(self, index: int) -> int:
        return int(np.flatnonzero(self._examples.label_mask(index))[:_MOST_LABELS][-1]) + 1


def _failed(name: str, what: str) -> CloisterError:
    return CloisterError(FailureReason.SELF_TEST_FAILED, f"Self-test {name}: {what}.")
