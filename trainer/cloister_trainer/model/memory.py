"""The memory plan: the fastest choice that fits. Pure arithmetic; memory_parts.py has the bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from cloister_api.spec_cluster import Offload
from cloister_api.spec_training import AutoMode, Quantization
from cloister_trainer.model.memory_parts import Choice, PlanInputs, device_parts
from cloister_trainer.records import MemoryPart

FEW_TOKENS = 2048
"""A micro-batch below this leaves a GPU idle; recomputation is worth more than a smaller one."""
FEW_TOKENS_SHARDED = 8192
"""The same at stage 3, where every micro-batch gathers the base twice."""
MOST_TOKENS = 65_536
"""Larger micro-batches make nothing faster."""
CPU_TOKENS = 2048


@dataclass(frozen=True)
class MemoryPlan:
    """A choice, and the bytes of every part of one device."""

    choice: Choice
    parts: list[MemoryPart]
    limit: int | None

    @property
    def peak_bytes(self) -> int:
        """The sum of all parts."""
        return sum(part.bytes for part in self.parts)

    @property
    def fits(self) -> bool:
        """Whether the sum is within the limit, if one is known."""
        return self.limit is None or self.peak_bytes <= self.limit


def plan_memory(inputs: PlanInputs, kept: Choice | None = None) -> MemoryPlan:
    """The fastest choice that fits, or the smallest one when none does.

    In this order: `kept`, an earlier start's choice, so that this one rounds as that did; the lowest ZeRO stage; no
    recomputation where the micro-batch can still be large enough to keep the device busy; the largest micro-batch.
    """
    if not inputs.on_gpu or inputs.gpu_memory is None:
        return _unlimited(inputs)
    if kept is not None and _allows(inputs, kept):
        again = MemoryPlan(kept, device_parts(inputs, kept), inputs.gpu_memory)
        if again.fits:
            return again
    for stage in _stages(inputs):
        for hpz in _hpz(inputs, stage):
            plans = {}
            for checkpointing in _checkpointing(inputs):
                plan = _largest(inputs, Choice(stage, checkpointing, 0, hpz))
                if plan:
                    plans[checkpointing] = plan
            if chosen := _faster(stage, plans):
                return chosen
    smallest = Choice(_stages(inputs)[-1], _checkpointing(inputs)[-1], _sizes(inputs)[-1])
    return MemoryPlan(smallest, device_parts(inputs, smallest), inputs.gpu_memory)


def _allows(inputs: PlanInputs, kept: Choice) -> bool:
    """Whether the job leaves the choice open."""
    fixed = inputs.micro_batch_tokens is not None or not inputs.packing
    tokens = kept.micro_batch_tokens in _sizes(inputs) if fixed else kept.micro_batch_tokens >= inputs.longest
    return (
        tokens
        and kept.zero_stage in _stages(inputs)
        and kept.hpz in _hpz(inputs, kept.zero_stage)
        and kept.gradient_checkpointing in _checkpointing(inputs)
    )


def _unlimited(inputs: PlanInputs) -> MemoryPlan:
    """On CPUs, or on GPUs of unknown size: a moderate micro-batch, and on GPUs recomputation to be safe."""
    stage = inputs.zero_stage if inputs.zero_stage is not None else 2
    checkpointing = inputs.checkpointing is AutoMode.ALWAYS or (inputs.checkpointing is AutoMode.AUTO and inputs.on_gpu)
    tokens = inputs.micro_batch_tokens or (max(CPU_TOKENS, inputs.longest) if inputs.packing else inputs.longest)
    choice = Choice(stage, checkpointing, tokens)
    return MemoryPlan(choice, device_parts(inputs, choice), None)


def _stages(inputs: PlanInputs) -> list[int]:
    if inputs.zero_stage is not None:
        return [inputs.zero_stage]
    if inputs.quantization is Quantization.NF4 or inputs.devices == 1:
        return [2]
    return [2, 3]


def _hpz(inputs: PlanInputs, stage: int) -> list[bool]:
    several_nodes = inputs.workers > 1 and inputs.gpus_per_worker > 1
    return [True, False] if stage == 3 and several_nodes and inputs.offload is Offload.NONE else [False]


def _checkpointing(inputs: PlanInputs) -> list[bool]:
    modes = {AutoMode.AUTO: [False, True], AutoMode.ALWAYS: [True], AutoMode.NEVER: [False]}
    return modes[inputs.checkpointing]


def _sizes(inputs: PlanInputs) -> list[int]:
    """Micro-batches worth trying, largest first: 2^n and 1.5 x 2^n tokens, none too short for the longest example and
    none longer than a device's share of the longest examples."""
    if inputs.micro_batch_tokens is not None:
        return [inputs.micro_batch_tokens]
    if not inputs.packing:
        return [inputs.longest]
    wanted = _useful_tokens(inputs)
    steps = [power * factor // 2 for power in (1 << n for n in range(8, 22)) for factor in (2, 3)]
    most = _share(inputs, inputs.examples_per_step) * inputs.longest
    sizes = sorted({max(min(size, most), inputs.longest) for size in steps if size < 2 * wanted}, reverse=True)
    return sizes or [inputs.longest]


def _useful_tokens(inputs: PlanInputs) -> int:
    """More than a device's share of a batch is never needed at once."""
    return max(inputs.longest, min(_share(inputs, inputs.tokens_per_step), MOST_TOKENS))


def _share(inputs: PlanInputs, amount: int) -> int:
    """What each device gets of a batch's tokens or examples, at most."""
    return math.ceil(amount / (inputs.workers * max(1, inputs.gpus_per_worker)))


def _largest(inputs: PlanInputs, choice: Choice) -> MemoryPlan | None:
    for tokens in _sizes(inputs):
        sized = replace(choice, micro_batch_tokens=tokens)
        plan = MemoryPlan(sized, device_parts(inputs, sized), inputs.gpu_memory)
        if plan.fits:
            return plan
    return None


def _faster(stage: int, plans: dict[bool, MemoryPlan]) -> MemoryPlan | None:
    """Without recomputation if its micro-batch is large enough, or recomputation would not enlarge it."""
    plain, recomputed = plans.get(False), plans.get(True)
    if plain is None or recomputed is None:
        return plain or recomputed
    enough = min(FEW_TOKENS_SHARDED if stage == 3 else FEW_TOKENS, recomputed.choice.micro_batch_tokens)
    return plain if plain.choice.micro_batch_tokens >= enough else recomputed
