"""The least hardware that trains a published model: found by planning a usual job over more and more GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cloister_api.job import FineTuneJobSpec
from cloister_api.run import Run
from cloister_api.spec_training import TargetPreset
from cloister_trainer.model.advice import GPUS_PER_NODE
from cloister_trainer.model.config import native_config
from cloister_trainer.model.folder import InspectedModel
from cloister_trainer.model.host import disk_parts, host_parts
from cloister_trainer.model.memory import plan_memory
from cloister_trainer.model.memory_parts import Choice, PlanInputs
from cloister_trainer.model.plan import plan_inputs
from cloister_trainer.model.published import Published
from cloister_trainer.model.settings import DEFAULT_MAX_LENGTH
from cloister_trainer.model.targets import Targets, resolve_targets
from cloister_trainer.model.tensors import TensorInfo
from cloister_trainer.records import LicenseFinding, ListedFile, MemoryPart, ModelRecord, TokensIndex

MOST_NODES = 32
"""More are no answer to what one needs at least."""
EXAMPLES = 10_000
BF16_BYTES = 2


@dataclass(frozen=True)
class Hardware:
    """GPUs on which a job fits, and what each node has beside them."""

    nodes: int
    gpus_per_node: int
    zero_stage: int
    host_bytes: int
    """Memory of one node."""
    disk_bytes: int
    """Local disk of one node, with the base model fetched from S3."""

    @property
    def gpus(self) -> int:
        """All of them."""
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class UsualJob:
    """A job that says nothing but a preset, on a published model, with examples of up to 4,096 tokens."""

    run: Run
    inspected: InspectedModel
    targets: Targets
    index: TokensIndex
    inputs: PlanInputs


def inspected_model(model_type: str, published: Published) -> InspectedModel:
    """The model as prepare would find it: names and shapes are those that transformers gives it, without weights."""
    import torch
    from transformers import AutoModelForCausalLM

    native = native_config({"model_type": model_type, **published.config})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(native)
    tensors = {name: TensorInfo("BF16", tuple(tensor.shape)) for name, tensor in model.named_parameters()}
    parameters = sum(info.parameters for info in tensors.values())
    record = ModelRecord(
        uri="s3://models/base",
        model_type=model_type,
        architecture=type(model).__name__,
        small_files=[],
        weight_files=[ListedFile(name="model.safetensors", size=BF16_BYTES * parameters, etag="")],
        header_digest="",
        fingerprint="",
        ignored_files=[],
        base_parameters=parameters,
        license=LicenseFinding(id="", evidence="Stated"),
        position_limit=native.max_position_embeddings,
    )
    return InspectedModel(record, native.to_dict(), Path(), tensors)


def usual_job(inspected: InspectedModel, preset: TargetPreset) -> UsualJob:
    """Everything else stays as the defaults have it: rank 16, bf16."""
    spec = {
        "model": {"uri": inspected.record.uri},
        "dataset": {"uri": "s3://datasets/train.jsonl"},
        "output": {"uri": "s3://adapters/adapter"},
        "lora": {"targets": {"preset": preset.value}},
    }
    run = Run(
        uid="00000000-0000-4000-8000-000000000000",
        namespace="default",
        name="usual",
        spec=FineTuneJobSpec.model_validate(spec),
    )
    longest = min(DEFAULT_MAX_LENGTH, inspected.record.position_limit)
    index = TokensIndex(
        digest="",
        train=[],
        validation=[],
        epoch_examples=EXAMPLES,
        epoch_tokens=EXAMPLES * longest // 2,
        epoch_trained_tokens=EXAMPLES * longest // 4,
        validation_examples=0,
        longest=longest,
        pad_token_id=0,
    )
    targets = resolve_targets(inspected.config, inspected.tensors, run.spec.lora)
    inputs = plan_inputs(run, inspected, index, targets, None, on_gpus=True)
    return UsualJob(run, inspected, targets, index, inputs)


def least_hardware(job: UsualJob, gpu_memory: int) -> Hardware | None:
    """The fewest GPUs of `gpu_memory` bytes, eight a node, on which the job fits; None where no number does."""
    for nodes, gpus in _sizes():
        inputs = replace(job.inputs, gpu_memory=gpu_memory, workers=nodes, min_workers=nodes, gpus_per_worker=gpus)
        plan = plan_memory(inputs)
        if plan.fits:
            return _hardware(job, inputs, plan.choice)
    return None


def _sizes() -> Iterator[tuple[int, int]]:
    """(nodes, GPUs of each): parts of a node in powers of two, then whole nodes."""
    gpus = 1
    while gpus < GPUS_PER_NODE:
        yield 1, gpus
        gpus *= 2
    yield from ((nodes, GPUS_PER_NODE) for nodes in range(1, MOST_NODES + 1))


def _hardware(job: UsualJob, inputs: PlanInputs, choice: Choice) -> Hardware:
    return Hardware(
        nodes=inputs.workers,
        gpus_per_node=inputs.gpus_per_worker,
        zero_stage=choice.zero_stage,
        host_bytes=_sum(host_parts(job.run, inputs, choice)),
        disk_bytes=_sum(disk_parts(job.run, job.inspected.record, job.index, inputs)),
    )


def _sum(parts: list[MemoryPart]) -> int:
    return sum(part.bytes for part in parts)
