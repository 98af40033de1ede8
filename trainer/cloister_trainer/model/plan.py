"""The plan of a run: steps, targets and memory, chosen from the job, the model and the tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.run import Run
from cloister_api.spec_training import AutoMode
from cloister_trainer.model.advice import WhatIf, does_not_fit, what_if_rows
from cloister_trainer.model.cost import model_cost
from cloister_trainer.model.families import FAMILIES, Family
from cloister_trainer.model.folder import InspectedModel
from cloister_trainer.model.host import disk_parts, host_parts
from cloister_trainer.model.memory import plan_memory
from cloister_trainer.model.memory_parts import Choice, PlanInputs
from cloister_trainer.model.plan_warnings import plan_warnings
from cloister_trainer.model.settings import (
    can_quantise,
    check_before_data,
    check_with_data,
    gpu_memory,
    max_length,
    packs,
)
from cloister_trainer.model.targets import Targets, resolve_targets
from cloister_trainer.records import TokensIndex, TrainPlan


def build_train_plan(
    run: Run,
    inspected: InspectedModel,
    index: TokensIndex,
    free_memory: int | None = None,
    kept: Choice | None = None,
) -> TrainPlan:
    """Choose what the job leaves open, and refuse what cannot work.

    `free_memory` is what one device really has free, in bytes, after its context was made; without it the memory that
    the job or the administrator gives for the GPU counts. `kept`, an earlier start's choice, is chosen again where the
    job still leaves it open and it still fits.

    Raises SpecInvalid for settings that contradict model or data, DoesNotFit with the lines that would fit.
    """
    family = FAMILIES[inspected.record.model_type]
    targets, notes = check_before_data(run, inspected)
    check_with_data(run, inspected, index)
    on_gpus = run.spec.distribution.gpus_per_worker > 0
    inputs = plan_inputs(run, inspected, index, targets, free_memory, on_gpus=on_gpus)
    chosen = plan_memory(inputs, kept)
    if not chosen.fits:
        raise CloisterError(FailureReason.DOES_NOT_FIT, does_not_fit(inputs, chosen))
    training = run.spec.training
    steps_per_epoch = math.ceil(index.epoch_examples / training.global_batch_size)
    total = math.ceil(training.epochs * steps_per_epoch)
    plan = TrainPlan(
        zero_stage=chosen.choice.zero_stage,
        micro_batch_tokens=chosen.choice.micro_batch_tokens,
        gradient_checkpointing=chosen.choice.gradient_checkpointing,
        packing=inputs.packing,
        max_length=max_length(run.spec.training, inspected.record.position_limit),
        total_steps=min(training.max_steps or total, total),
        steps_per_epoch=steps_per_epoch,
        hpz_partition=inputs.gpus_per_worker if chosen.choice.hpz else None,
        target_modules=[*targets.modules, *targets.parameters],
        trainable_parameters=targets.trainable_parameters,
        gpu_memory=chosen.parts if inputs.on_gpu else [],
        host_memory=host_parts(run, inputs, chosen.choice),
        local_disk=disk_parts(run, inspected.record, index, inputs),
        gpu_memory_limit=chosen.limit,
    )
    warnings = [*notes, *plan_warnings(run, inspected, family, index, inputs, plan)]
    return plan.model_copy(update={"warnings": warnings})


def what_ifs(run: Run, inspected: InspectedModel, index: TokensIndex) -> list[WhatIf]:
    """The plan for other GPUs and lengths; on CPUs as if there were GPUs."""
    targets = resolve_targets(inspected.config, inspected.tensors, run.spec.lora)
    inputs = plan_inputs(run, inspected, index, targets, None, on_gpus=True)
    return what_if_rows(inputs, max_length(run.spec.training, inspected.record.position_limit))


def plan_inputs(
    run: Run,
    inspected: InspectedModel,
    index: TokensIndex,
    targets: Targets,
    free_memory: int | None,
    *,
    on_gpus: bool,
) -> PlanInputs:
    """Everything that the memory plan depends on. `on_gpus`: whether to count activations as GPUs keep them."""
    spec, where = run.spec, run.spec.distribution
    family = FAMILIES[inspected.record.model_type]
    mean_length = index.epoch_tokens / max(1, index.epoch_examples)
    examples_per_step = min(spec.training.global_batch_size, index.epoch_examples)
    inputs = PlanInputs(
        cost=model_cost(
            inspected.config,
            inspected.tensors,
            targets,
            spec.training.precision,
            on_gpus=on_gpus,
            dropout=spec.lora.dropout > 0,
        ),
        longest=index.longest,
        tokens_per_step=math.ceil(mean_length * examples_per_step),
        examples_per_step=examples_per_step,
        workers=where.workers,
        gpus_per_worker=where.gpus_per_worker,
        min_workers=where.min_workers or where.workers,
        gpu_memory=gpu_memory(run),
        zero_stage=where.zero_stage,
        offload=where.offload,
        quantization=spec.lora.quantization,
        quantizable=can_quantise(family),
        checkpointing=spec.training.gradient_checkpointing,
        micro_batch_tokens=spec.training.micro_batch_tokens,
        packing=spec.training.packing is not AutoMode.NEVER and packs(inspected, index.longest),
        eager_attention=_eager_attention(family, inspected.config, index.longest),
    )
    if free_memory is None or not inputs.on_gpu:
        return inputs
    return replace(inputs, gpu_memory=free_memory, context_counted=True)


def _eager_attention(family: Family, config: Mapping[str, Any], longest: int) -> bool:
    """Whether train uses transformers' own attention; see train/attention.py."""
    window = config.get("sliding_window")
    return family.eager or (family.window_in_mask and isinstance(window, int) and longest > window)
