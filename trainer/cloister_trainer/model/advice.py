"""What else would fit: the lines that DoesNotFit prints, and the table of what-ifs. Found by planning again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from cloister_api.spec_cluster import Offload
from cloister_api.spec_training import AutoMode, Quantization
from cloister_trainer.model.memory import MemoryPlan, plan_memory
from cloister_trainer.model.memory_parts import GIB, PlanInputs
from cloister_trainer.model.quantity import readable

SHORTEST = 256
MOST_WORKERS = 64
MOST_LINES = 6
WHAT_IF_MEMORY = tuple(size * GIB for size in (24, 40, 80, 141))
WHAT_IF_GPUS = (1, 2, 4, 8, 16)
GPUS_PER_NODE = 8
LARGEST_PARTS = 4
NF4_LINE = "lora: {quantization: NF4}"


@dataclass(frozen=True)
class WhatIf:
    """One row of `cloister plan`'s table."""

    gpu_memory: int
    """Bytes of one GPU."""
    gpus: int
    max_length: int
    fits: bool
    zero_stage: int
    micro_batch_tokens: int
    gradient_checkpointing: bool
    peak_bytes: int
    """Of one GPU."""


def does_not_fit(inputs: PlanInputs, plan: MemoryPlan) -> str:
    """The sentence for a plan that does not fit: what is large, and the lines that would fit."""
    largest = sorted(plan.parts, key=lambda part: -part.bytes)[:LARGEST_PARTS]
    parts = ", ".join(f"{part.name} {readable(part.bytes)}" for part in largest)
    limit = readable(plan.limit or 0)
    sentence = f"One GPU needs {readable(plan.peak_bytes)} and has {limit}; the largest parts are {parts}."
    lines = fitting_lines(inputs)
    if not lines:
        return f"{sentence} No single change makes it fit: use larger GPUs, more of them, or a smaller model."
    return f"{sentence} Any one of these would fit:\n" + "\n".join(f"  {line}" for line in lines)


def fitting_lines(inputs: PlanInputs) -> list[str]:
    """Lines of a job with which it would fit, smallest change first; each was planned."""
    lines: list[str] = []
    kinds: set[str] = set()
    for kind, line, changed in _changes(inputs):
        if kind not in kinds and len(lines) < MOST_LINES and plan_memory(changed).fits:
            kinds.add(kind)
            lines.append(line)
    return lines


def _changes(inputs: PlanInputs) -> Iterator[tuple[str, str, PlanInputs]]:
    """(kind of change, its line, the inputs with it); of one kind the mildest first."""
    if inputs.checkpointing is AutoMode.NEVER:
        line = "training: {gradientCheckpointing: Always}"
        yield "checkpointing", line, replace(inputs, checkpointing=AutoMode.ALWAYS)
    if inputs.micro_batch_tokens is not None and inputs.micro_batch_tokens > inputs.longest:
        line = f"training: {{microBatchTokens: {inputs.longest}}}"
        yield "micro-batch", line, replace(inputs, micro_batch_tokens=inputs.longest)
    nf4 = inputs.quantization is Quantization.NF4
    if inputs.zero_stage is not None and inputs.zero_stage < 3 and inputs.devices > 1 and not nf4:
        yield "stage", "distribution: {zeroStage: 3}", replace(inputs, zero_stage=3)
    length = inputs.longest // 2
    while length >= SHORTEST:
        yield "length", f"training: {{maxLength: {length}}}", shortened(inputs, length)
        length //= 2
    if inputs.min_workers < inputs.workers:
        line = f"distribution: {{minWorkers: {inputs.workers}}}"
        yield "minimum", line, replace(inputs, min_workers=inputs.workers)
    if inputs.quantizable and not nf4 and (inputs.zero_stage or 0) < 3:
        yield "quantization", NF4_LINE, replace(inputs, quantization=Quantization.NF4)
    workers = 2 * inputs.workers
    while workers <= MOST_WORKERS:
        more = replace(inputs, workers=workers, min_workers=workers)
        least = f", minWorkers: {workers}" if inputs.min_workers < inputs.workers else ""
        yield "workers", f"distribution: {{workers: {workers}{least}}}", more
        workers *= 2
    if inputs.offload is Offload.NONE and not nf4:
        offloaded = replace(inputs, zero_stage=3, offload=Offload.PARAMETERS)
        yield "offload", "distribution: {zeroStage: 3, offload: Parameters}", offloaded


def shortened(inputs: PlanInputs, length: int) -> PlanInputs:
    """The same run with examples of at most `length` tokens."""
    tokens = inputs.micro_batch_tokens
    return replace(inputs, longest=min(inputs.longest, length), micro_batch_tokens=tokens and max(tokens, length))


def what_if_rows(inputs: PlanInputs, max_length: int) -> list[WhatIf]:
    """The plan over GPU memory, number of GPUs (eight a node), and half, once and twice the length."""
    rows = []
    for length in (max_length // 2, max_length, 2 * max_length):
        for memory in WHAT_IF_MEMORY:
            for gpus in WHAT_IF_GPUS:
                nodes = max(1, gpus // GPUS_PER_NODE)
                changed = replace(
                    inputs,
                    longest=length,
                    gpu_memory=memory,
                    context_counted=False,
                    workers=nodes,
                    min_workers=nodes,
                    gpus_per_worker=gpus // nodes,
                    micro_batch_tokens=None,
                )
                rows.append(_row(memory, gpus, length, plan_memory(changed)))
    return rows


def _row(memory: int, gpus: int, length: int, plan: MemoryPlan) -> WhatIf:
    choice = plan.choice
    return WhatIf(
        gpu_memory=memory,
        gpus=gpus,
        max_length=length,
        fits=plan.fits,
        zero_stage=choice.zero_stage,
        micro_batch_tokens=choice.micro_batch_tokens,
        gradient_checkpointing=choice.gradient_checkpointing,
        peak_bytes=plan.peak_bytes,
    )
