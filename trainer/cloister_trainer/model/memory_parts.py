"""The parts of a device's memory, each in bytes by name. Pure arithmetic.

The numbers are estimates from above: 1.0 to 1.4 times the measured peak on an H100, for a few layers of Llama, Qwen3,
Phi-3, OLMo 2, Gemma 2, Mixtral, Qwen3-MoE and DeepSeek-V2 at 2048 and 8192 tokens (benchmarks/memory_plan.py). train
plans again from the memory that is really free, and reports the estimate beside what it measures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from cloister_api.spec_cluster import Offload
from cloister_api.spec_training import AutoMode, Quantization
from cloister_trainer.model.cost import ModelCost
from cloister_trainer.records import MemoryPart

GIB = 1 << 30
MIB = 1 << 20

CUDA_CONTEXT_BYTES = 768 * MIB
"""Context, loaded kernels and cuBLAS workspaces of one process (measured 0.75 GiB on an H100)."""
DRIVER_SHARE = 0.015
"""Of a GPU's nominal memory what the driver keeps (an H100 of 80 GiB offers 79.2)."""
NCCL_NODE_BYTES = 512 * MIB
"""NCCL's channels and buffers within a node; as much again between nodes."""
ADAPTER_BYTES = 16
"""float32 weight, gradient and two Adam moments of one adapter parameter. Not divided by the ZeRO stage: an estimate
from above, and small beside the base."""
NF4_BYTES = 0.53
"""4 bits and the double-quantised scales of one weight (Dettmers et al. 2023, section 3)."""
REDUCE_BUCKET_ELEMENTS = 50_000_000
"""DeepSpeed's reduce buckets: train sets reduce_bucket_size to the adapter's size, at most this."""
LIVE_PARAMETERS = 1_000_000_000
"""DeepSpeed's stage3_max_live_parameters: gathered weights stay until there are this many."""
PREFETCHED_PARAMETERS = 50_000_000
"""DeepSpeed's stage3_prefetch_bucket_size."""
LOSS_CHUNK_LOGITS = {True: 64 * MIB, False: 8 * MIB}
"""Logits that exist at one time on GPUs and on CPUs; see train/loss.py."""
LOSS_LOGIT_BYTES = 10
"""Of one logit: in bf16, its float32 softmax, and its gradient in bf16, with one temporary."""
SCORE_SAVED_BYTES = 8
"""Of one attention score that eager attention keeps: softmax in float32, and in bf16 before and after it."""
SCORE_WORK_BYTES = 8
"""Of one score while its layer is in hand."""
OUTSIDE_ALLOCATOR = ("CUDA context", "driver", "NCCL buffers", "fragmentation")
"""Parts that PyTorch's allocator does not hold to be allocated."""
FRAGMENTATION = 0.06
"""Share of the changing memory that the allocator cannot hand out again (expandable segments)."""


@dataclass(frozen=True)
class PlanInputs:
    """Everything that the plan depends on."""

    cost: ModelCost
    longest: int
    """Tokens of the longest example."""
    tokens_per_step: int
    """Mean tokens of a global batch."""
    examples_per_step: int
    """Of a global batch."""
    workers: int
    gpus_per_worker: int
    """0: one process per worker on its CPUs."""
    min_workers: int
    gpu_memory: int | None
    """Bytes that one device offers; None when unknown or on CPUs."""
    context_counted: bool = False
    """gpu_memory is what is free after CUDA's context was made."""
    zero_stage: int | None = None
    offload: Offload = Offload.NONE
    quantization: Quantization = Quantization.NONE
    quantizable: bool = True
    """Whether the family's base can be held in 4 bits."""
    checkpointing: AutoMode = AutoMode.AUTO
    micro_batch_tokens: int | None = None
    packing: bool = True
    eager_attention: bool = False
    """Attention scores are kept as matrices; see Family.eager."""

    @property
    def devices(self) -> int:
        """Processes that train when as few workers are left as may be: the memory of each is greatest then."""
        return self.min_workers * max(1, self.gpus_per_worker)

    @property
    def on_gpu(self) -> bool:
        """Whether there are GPUs."""
        return self.gpus_per_worker > 0


@dataclass(frozen=True)
class Choice:
    """What can be chosen."""

    zero_stage: int
    gradient_checkpointing: bool
    micro_batch_tokens: int
    hpz: bool = False
    """Every node holds a second copy of the base's shards (ZeRO++ hpZ), so that the backward pass gathers within it."""


def device_parts(inputs: PlanInputs, choice: Choice) -> list[MemoryPart]:
    """Bytes of every part on one device (on CPUs: of one process), none of them negative."""
    changing = [*_gathers(inputs, choice), *_activations(inputs, choice), *_workspaces(inputs, choice)]
    parts = [*_context(inputs), *_base(inputs, choice), *_adapter(inputs, choice), *changing]
    if inputs.on_gpu:
        lost = int(FRAGMENTATION * sum(part.bytes for part in changing))
        parts.append(MemoryPart(name="fragmentation", bytes=lost, note=f"{FRAGMENTATION:.0%} of what changes"))
    return [part for part in parts if part.bytes]


def base_bytes(inputs: PlanInputs) -> int:
    """The whole base as it is held: bf16 or fp32, with NF4 4 bits for the layers' linear modules."""
    cost = inputs.cost
    if inputs.quantization is Quantization.NF4:
        plain = cost.parameters - cost.linear_parameters
        return plain * cost.element_bytes + int(cost.linear_parameters * NF4_BYTES)
    return cost.parameters * cost.element_bytes


def _context(inputs: PlanInputs) -> Iterator[MemoryPart]:
    if inputs.on_gpu and not inputs.context_counted:
        yield MemoryPart(name="CUDA context", bytes=CUDA_CONTEXT_BYTES)
        if inputs.gpu_memory:
            kept = int(DRIVER_SHARE * inputs.gpu_memory)
            yield MemoryPart(name="driver", bytes=kept, note=f"{DRIVER_SHARE:.1%} of the nominal size")
    if inputs.on_gpu and inputs.workers * inputs.gpus_per_worker > 1:
        kinds = 1 + (inputs.workers > 1)
        yield MemoryPart(name="NCCL buffers", bytes=kinds * NCCL_NODE_BYTES)


def _base(inputs: PlanInputs, choice: Choice) -> Iterator[MemoryPart]:
    whole = base_bytes(inputs)
    if choice.zero_stage < 3:
        note = "NF4" if inputs.quantization is Quantization.NF4 else f"{inputs.cost.element_bytes} B a parameter"
        yield MemoryPart(name="base model", bytes=whole, note=note)
        return
    fewest = f"; at minWorkers {inputs.min_workers}" if inputs.min_workers < inputs.workers else ""
    if inputs.offload is Offload.NONE:
        shard = math.ceil(whole / inputs.devices)
        yield MemoryPart(name="base shard", bytes=shard, note=f"1/{inputs.devices} of the base{fewest}")
    if choice.hpz:
        copy = math.ceil(whole / inputs.gpus_per_worker)
        yield MemoryPart(name="hpZ copy", bytes=copy, note=f"1/{inputs.gpus_per_worker} of the base, within the node")


def _adapter(inputs: PlanInputs, choice: Choice) -> Iterator[MemoryPart]:
    trainable = inputs.cost.trainable_parameters
    note = f"{ADAPTER_BYTES} B for each of {trainable:,} parameters: weight, gradient, Adam"
    yield MemoryPart(name="adapter and optimizer", bytes=ADAPTER_BYTES * trainable, note=note)
    if choice.zero_stage >= 2:
        buckets = 2 * 4 * reduce_bucket_elements(trainable)
        yield MemoryPart(name="reduce buckets", bytes=buckets, note="two of float32 gradients")


def reduce_bucket_elements(trainable_parameters: int) -> int:
    """DeepSpeed's reduce_bucket_size: its buffers are made at full size, so no larger than the adapter needs."""
    return min(max(1, trainable_parameters), REDUCE_BUCKET_ELEMENTS)


def _gathers(inputs: PlanInputs, choice: Choice) -> Iterator[MemoryPart]:
    if choice.zero_stage == 3:
        cost = inputs.cost
        live = min(cost.parameters, max(LIVE_PARAMETERS, cost.largest_layer_parameters) + PREFETCHED_PARAMETERS)
        yield MemoryPart(
            name="stage 3 live weights", bytes=live * cost.element_bytes, note=f"{live:,} gathered parameters"
        )
        gather = cost.largest_parameter * cost.element_bytes
        yield MemoryPart(name="stage 3 gather", bytes=gather, note="the largest weight, while it arrives")
    elif inputs.quantization is Quantization.NF4:
        yield MemoryPart(
            name="NF4 dequantisation",
            bytes=2 * inputs.cost.largest_linear * inputs.cost.element_bytes,
            note="the largest weight in full, forward and backward",
        )


def _activations(inputs: PlanInputs, choice: Choice) -> Iterator[MemoryPart]:
    cost, tokens = inputs.cost, choice.micro_batch_tokens
    residual = cost.hidden * cost.element_bytes * tokens
    if choice.gradient_checkpointing:
        yield MemoryPart(
            name="layer inputs", bytes=len(cost.layers) * residual, note=f"{tokens:,} tokens, {len(cost.layers)} layers"
        )
        yield MemoryPart(
            name="recomputed layer",
            bytes=cost.largest_saved_bytes_per_token * tokens,
            note=f"{cost.largest_saved_bytes_per_token:,} B a token",
        )
    else:
        yield MemoryPart(
            name="saved activations",
            bytes=cost.saved_bytes_per_token * tokens,
            note=f"{tokens:,} tokens, {cost.saved_bytes_per_token:,} B each",
        )
    if inputs.eager_attention:
        kept_layers = 1 if choice.gradient_checkpointing else len(cost.layers)
        scores = cost.heads * tokens * tokens
        yield MemoryPart(
            name="attention scores",
            bytes=(kept_layers * SCORE_SAVED_BYTES + SCORE_WORK_BYTES) * scores,
            note=f"{cost.heads} heads x {tokens:,} x {tokens:,}",
        )
    experts = [layer.adapted_expert_parameters for layer in cost.layers]
    if any(experts):
        # PEFT folds an adapter of fused experts into a weight of full size, kept until its layer's backward pass.
        kept = max(experts) if choice.gradient_checkpointing else sum(experts)
        transient = max(experts)
        yield MemoryPart(
            name="expert weights with adapter",
            bytes=(kept + transient) * cost.element_bytes,
            note="folded at full size, with gradient",
        )


def _workspaces(inputs: PlanInputs, choice: Choice) -> Iterator[MemoryPart]:
    cost, tokens = inputs.cost, choice.micro_batch_tokens
    widths = cost.query_width * (2 * cost.element_bytes + 4) + 2 * cost.key_value_width * cost.element_bytes
    yield MemoryPart(name="attention workspace", bytes=widths * tokens, note="gradients of queries, keys, values")
    gradients = cost.largest_saved_bytes_per_token // 2 + cost.hidden * (4 + 2 * cost.element_bytes)
    yield MemoryPart(name="gradients of activations", bytes=gradients * tokens, note="of the layer in hand")
    rows = max(16, LOSS_CHUNK_LOGITS[inputs.on_gpu] // cost.vocabulary)
    chunk = min(rows, tokens) * cost.vocabulary * LOSS_LOGIT_BYTES * cost.element_bytes // 2
    yield MemoryPart(name="loss chunk", bytes=chunk, note=f"{min(rows, tokens):,} x {cost.vocabulary:,} logits")
    yield MemoryPart(
        name="final hidden states", bytes=2 * tokens * cost.hidden * (cost.element_bytes + 2), note="and their gradient"
    )
