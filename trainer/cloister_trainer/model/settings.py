"""Settings of a job that contradict its model, found from config.json and safetensors headers alone, or its data."""

from __future__ import annotations

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.run import Run
from cloister_api.spec_training import AutoMode, Quantization, TargetPreset, Training
from cloister_trainer.model.config import position_switch
from cloister_trainer.model.families import FAMILIES, Family
from cloister_trainer.model.folder import InspectedModel
from cloister_trainer.model.quantity import quantity_bytes
from cloister_trainer.model.servers import check_servers
from cloister_trainer.model.targets import Targets, resolve_targets
from cloister_trainer.model.tensors import layer_of, live_tensors
from cloister_trainer.records import TokensIndex

DEFAULT_MAX_LENGTH = 4096
NF4_BLOCK = 64
"""Elements of a weight in 4 bits that share a scale."""


def check_before_data(run: Run, inspected: InspectedModel) -> tuple[Targets, list[str]]:
    """The adapted weights, and what whoever serves the adapter must know; every mistake that needs no data is found.

    Raises SpecInvalid for settings that contradict the model.
    """
    spec, family = run.spec, FAMILIES[inspected.record.model_type]
    max_length(spec.training, inspected.record.position_limit)
    gpu_memory(run)
    if spec.training.packing is AutoMode.ALWAYS and not family.packing:
        raise _invalid(
            f"training.packing is Always, but {family.title} ({family.attention_kind.value}) mixes packed examples. "
            "Leave packing at Auto."
        )
    if spec.lora.quantization is Quantization.NF4:
        check_nf4(run, inspected)
    if spec.lora.dropout > 0 and spec.lora.targets.preset is TargetPreset.ALL_WITH_EXPERTS and family.experts:
        raise _invalid("lora.dropout cannot be applied to routed experts. Set it to 0, or use the preset Auto.")
    targets = resolve_targets(inspected.config, inspected.tensors, spec.lora)
    return targets, check_servers(
        spec.output.servable_by or [], family, targets, rank_stabilized=spec.lora.rank_stabilized
    )


def check_nf4(run: Run, inspected: InspectedModel) -> None:
    """Raises SpecInvalid where this base cannot be held in 4 bits."""
    family = FAMILIES[inspected.record.model_type]
    if not can_quantise(family):
        raise _invalid(
            f"lora.quantization is NF4, which bitsandbytes has for linear modules only: most weights of {family.title} "
            "are those of its routed experts, which are none. Leave lora.quantization out. Where the base does not "
            "fit into one GPU, distribution.zeroStage 3 divides it among several."
        )
    if run.spec.distribution.gpus_per_worker == 0:
        live = live_tensors(family, inspected.config["num_hidden_layers"], inspected.tensors)
        for name, shape in live.parameters.items():
            if layer_of(name) and len(shape) == 2 and shape[1] % NF4_BLOCK:
                raise _invalid(
                    f"lora.quantization is NF4, and on CPUs bitsandbytes finds the wrong scales where {NF4_BLOCK} does "
                    f"not divide a weight's number of inputs: {name} has {shape[1]}. Train on GPUs, or leave "
                    "lora.quantization out."
                )


def can_quantise(family: Family) -> bool:
    """Whether a base of this family can be held in 4 bits: routed experts are fused parameters, not linear modules."""
    return family.experts is None


def check_with_data(run: Run, inspected: InspectedModel, index: TokensIndex) -> None:
    """Raises SpecInvalid for settings that contradict the data."""
    if run.spec.training.packing is AutoMode.ALWAYS and not packs(inspected, index.longest):
        switch = position_switch(inspected.config)
        raise _invalid(
            f"training.packing is Always, but beyond {switch} tokens this model's rotary positions (LongRoPE) depend "
            f"on the longest example of a row, and the longest has {index.longest}. Leave packing at Auto, or set "
            f"maxLength to {switch} or less."
        )
    budget = run.spec.training.micro_batch_tokens
    if budget is not None and budget < index.longest:
        raise _invalid(
            f"training.microBatchTokens is {budget}, but the longest example has {index.longest} tokens. "
            f"Set microBatchTokens to {index.longest} or more, or maxLength to {budget} or less."
        )
    if run.spec.evaluation.gate is not None and index.validation_examples == 0:
        raise _invalid(
            "evaluation.gate needs validation examples, and there are none. Set dataset.validation, or remove the gate."
        )


def packs(inspected: InspectedModel, longest: int) -> bool:
    """Whether examples of up to `longest` tokens stay separate when they share a row."""
    if not FAMILIES[inspected.record.model_type].packing:
        return False
    switch = position_switch(inspected.config)
    return switch is None or longest <= switch


def max_length(training: Training, position_limit: int) -> int:
    """training.maxLength, else 4096 tokens or the model's own limit.

    Raises SpecInvalid when maxLength is above the limit.
    """
    if training.max_length is not None and training.max_length > position_limit:
        raise _invalid(
            f"training.maxLength is {training.max_length}, but the model's configuration allows {position_limit} "
            f"tokens. Set it to {position_limit} or less."
        )
    return training.max_length or min(DEFAULT_MAX_LENGTH, position_limit)


def gpu_memory(run: Run) -> int | None:
    """Bytes of one GPU by distribution.gpuMemory or the administrator's profile; None on CPUs or when neither says it.

    Raises SpecInvalid for what is not a quantity.
    """
    where = run.spec.distribution
    if where.gpus_per_worker == 0:
        return None
    if where.gpu_memory is not None:
        return quantity_bytes(where.gpu_memory, "distribution.gpuMemory")
    given = run.settings.gpu_memory.get(where.profile)
    return quantity_bytes(given, f"the memory of profile {where.profile}") if given else None


def _invalid(sentence: str) -> CloisterError:
    return CloisterError(FailureReason.SPEC_INVALID, sentence)
