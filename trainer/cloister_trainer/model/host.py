"""Host memory and local disk of one worker, part by part."""

from __future__ import annotations

import math

from cloister_api.run import Run
from cloister_api.spec_cluster import Offload
from cloister_trainer.model.memory_parts import GIB, MIB, Choice, PlanInputs, base_bytes, device_parts
from cloister_trainer.records import MemoryPart, ModelRecord, TokensIndex

PROCESS_BYTES = {True: 3 * GIB, False: 3 * GIB // 2}
"""Python, PyTorch and the libraries they load, with CUDA's and without."""
RAY_BYTES = GIB
MERGE_BYTES = 8 * GIB
"""Bound of the merge, which streams the base tensor by tensor."""
CHECKPOINT_BYTES = 12
"""float32 weight and two Adam moments of one adapter parameter."""
TOKEN_BYTES = 4
LOG_BYTES = 256 * MIB
RAY_DISK_BYTES = GIB


def host_parts(run: Run, inputs: PlanInputs, choice: Choice) -> list[MemoryPart]:
    """Host memory of one worker in bytes; on CPUs that is where everything lies."""
    processes = max(1, inputs.gpus_per_worker)
    whole, trainable = base_bytes(inputs), inputs.cost.trainable_parameters
    parts = [
        MemoryPart(
            name="processes", bytes=processes * PROCESS_BYTES[inputs.on_gpu], note=f"{processes} x Python and PyTorch"
        ),
        MemoryPart(name="Ray", bytes=RAY_BYTES),
        MemoryPart(name="checkpoint", bytes=CHECKPOINT_BYTES * trainable, note="copied out while training goes on"),
    ]
    if not inputs.on_gpu:
        parts += device_parts(inputs, choice)
    elif choice.zero_stage < 3:
        parts.append(MemoryPart(name="base while loading", bytes=processes * whole, note="each process, once"))
    else:
        parts.append(MemoryPart(name="base while loading", bytes=whole, note="on the first worker, once"))
    if inputs.offload is Offload.PARAMETERS:
        shards = math.ceil(whole * processes / inputs.devices)
        parts.append(MemoryPart(name="offloaded base", bytes=shards, note=f"{processes} shards, pinned"))
    if run.spec.output.merged_model:
        parts.append(MemoryPart(name="merging", bytes=MERGE_BYTES, note="at the end, on the first worker"))
    return [part for part in parts if part.bytes]


def disk_parts(run: Run, model: ModelRecord, index: TokensIndex, inputs: PlanInputs) -> list[MemoryPart]:
    """Local disk of one worker in bytes. Models on pvc:// and file:// are read in place."""
    parts = []
    if model.uri.startswith("s3://"):
        size = sum(file.size for file in model.weight_files) + sum(file.size for file in model.small_files)
        parts.append(MemoryPart(name="base model", bytes=size, note=f"{len(model.weight_files)} weight files"))
    tokens = sum(shard.file.size for shard in [*index.train, *index.validation])
    if not run.layout.root.startswith("file://") or run.spec.dataset.cache_uri:
        parts.append(MemoryPart(name="tokens", bytes=tokens))
    adapter = inputs.cost.trainable_parameters
    parts.append(MemoryPart(name="checkpoints and adapter", bytes=3 * CHECKPOINT_BYTES * adapter, note="before upload"))
    parts.append(MemoryPart(name="logs and metrics", bytes=LOG_BYTES))
    parts.append(MemoryPart(name="Ray", bytes=RAY_DISK_BYTES))
    return [part for part in parts if part.bytes]
