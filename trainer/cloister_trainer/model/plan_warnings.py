"""What is worth knowing before training: sentences about a plan that works, but perhaps not as meant."""

from __future__ import annotations

from collections.abc import Iterator

from cloister_api.run import Run
from cloister_api.spec_training import AutoMode
from cloister_trainer.model.families import Family
from cloister_trainer.model.folder import InspectedModel
from cloister_trainer.model.license_terms import license_warnings
from cloister_trainer.model.memory_parts import PlanInputs, base_bytes
from cloister_trainer.model.quantity import readable
from cloister_trainer.records import TokensIndex, TrainPlan

FEW_STEPS = 20
SMALL_TRAINED_SHARE = 0.02
USUAL_LEARNING_RATES = (1e-5, 1e-3)
LARGE_ADAPTER_SHARE = 0.1
NEARLY_FULL = 0.95


def plan_warnings(
    run: Run, inspected: InspectedModel, family: Family, index: TokensIndex, inputs: PlanInputs, plan: TrainPlan
) -> list[str]:
    """All warnings: of the data (the data report's notes among them), the settings, the devices and the licence."""
    return [
        *_data(run, index, plan),
        *_settings(run, inspected, plan),
        *_devices(run, family, inputs, plan),
        *license_warnings(inspected.record.license),
    ]


def _data(run: Run, index: TokensIndex, plan: TrainPlan) -> Iterator[str]:
    batch = run.spec.training.global_batch_size
    if batch > index.epoch_examples:
        yield (
            f"training.globalBatchSize is {batch}, and an epoch has {index.epoch_examples} examples: each step sees "
            "all of them. Lower it."
        )
    if plan.total_steps < FEW_STEPS:
        yield (
            f"There are only {plan.total_steps} steps. Lower training.globalBatchSize or raise training.epochs if the "
            "adapter learns too little."
        )
    share = index.epoch_trained_tokens / max(1, index.epoch_tokens)
    if share < SMALL_TRAINED_SHARE:
        yield (
            f"Only {share:.1%} of the tokens carry loss. Check that completions are what should be learned; "
            "cloister preview shows them."
        )
    yield from index.report.get("notes", ())
    if run.spec.evaluation.samples and index.validation_examples == 0:
        yield "evaluation.samples is set, but there are no validation examples to take them from."


def _settings(run: Run, inspected: InspectedModel, plan: TrainPlan) -> Iterator[str]:
    rate = run.spec.training.learning_rate
    low, high = USUAL_LEARNING_RATES
    if not low <= rate <= high:
        yield f"training.learningRate is {rate:g}; LoRA adapters are usually trained with {low:g} to {high:g}."
    share = plan.trainable_parameters / max(1, inspected.record.base_parameters)
    if share > LARGE_ADAPTER_SHARE:
        yield (f"The adapter has {share:.0%} of the base model's parameters. Lower lora.rank unless that is meant.")
    if any(info.dtype == "F16" for info in inspected.tensors.values()):
        yield "The weights are float16; they are trained on in bfloat16, which keeps fewer digits of each."


def _devices(run: Run, family: Family, inputs: PlanInputs, plan: TrainPlan) -> Iterator[str]:
    where = run.spec.distribution
    world = where.workers * max(1, where.gpus_per_worker)
    if run.spec.training.global_batch_size < world:
        yield (
            f"A batch of {run.spec.training.global_batch_size} examples leaves some of {world} processes idle. "
            "Raise training.globalBatchSize."
        )
    if inputs.on_gpu and plan.gpu_memory_limit is None:
        yield (
            "The memory of one GPU is not known, so nothing was checked against it: set distribution.gpuMemory, "
            "for example 80Gi."
        )
    used = sum(part.bytes for part in plan.gpu_memory)
    if plan.gpu_memory_limit is not None and used > NEARLY_FULL * plan.gpu_memory_limit:
        yield f"The plan uses {used / plan.gpu_memory_limit:.0%} of a GPU's memory; other processes on it must be none."
    if plan.zero_stage == 3 and where.workers > 1:
        yield _traffic(inputs, plan, world)
    if inputs.packing is False and inputs.on_gpu:
        yield f"Examples are not packed ({_why_alone(run, family, inputs)}): short ones leave a GPU partly idle."


def _why_alone(run: Run, family: Family, inputs: PlanInputs) -> str:
    if not family.packing:
        return family.attention_kind.value
    if run.spec.training.packing is AutoMode.NEVER:
        return "training.packing is Never"
    return f"LongRoPE takes other positions for the longest one, of {inputs.longest:,} tokens"


def _traffic(inputs: PlanInputs, plan: TrainPlan, world: int) -> str:
    """Stage 3 gathers the base for the forward and the backward pass of every micro-batch (Rajbhandari et al. 2020,
    section 7); with hpZ the second gather stays within the node (Wang et al. 2023, section 3.2)."""
    gathers = 1 if plan.hpz_partition else 2
    per_step = max(1, -(-inputs.tokens_per_step // (world * plan.micro_batch_tokens)))
    elsewhere = 1 - 1 / inputs.workers
    amount = int(gathers * per_step * base_bytes(inputs) * elsewhere)
    within = "; the backward pass gathers within the node (hpZ)" if plan.hpz_partition else ""
    return (
        f"Stage 3 over {inputs.workers} nodes moves about {readable(amount)} into each node per step "
        f"({per_step} micro-batches a device){within}. More microBatchTokens or larger GPUs lower it."
    )
