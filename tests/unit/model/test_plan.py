"""The plan of a run: steps, targets, warnings, and what is refused before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.run import RunSettings
from cloister_trainer.model.plan import build_train_plan, what_ifs
from cloister_trainer.model.quantity import quantity_bytes, readable
from cloister_trainer.records import TrainPlan
from support.model_folders import config, llama_tensors, mixtral_tensors, phi3_tensors
from support.plans import a_run, an_index, an_inspected_model

MIXTRAL = an_inspected_model(config("mixtral", "MixtralForCausalLM", num_experts_per_tok=2), mixtral_tensors())
CPU = {"workers": 2, "gpusPerWorker": 0}
GPU = {"gpuMemory": "80Gi"}


def planned(index: dict[str, Any] | None = None, model: Any = None, free: int | None = None, **spec: Any) -> TrainPlan:
    run = a_run(**{"distribution": GPU} | spec)
    return build_train_plan(run, model or an_inspected_model(), an_index(**index or {}), free)


def refusal(index: dict[str, Any] | None = None, model: Any = None, **spec: Any) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        planned(index, model, **spec)
    return caught.value


def test_steps_are_epochs_or_max_steps_whichever_comes_first() -> None:
    plan = planned(training={"globalBatchSize": 16, "epochs": 3})
    assert (plan.steps_per_epoch, plan.total_steps) == (63, 189)
    assert planned(training={"epochs": 0.5}).total_steps == 32
    assert planned(training={"maxSteps": 10}).total_steps == 10
    assert planned(training={"maxSteps": 10_000}).total_steps == 189


def test_on_cpus_memory_is_counted_on_the_host() -> None:
    plan = planned(distribution=CPU)
    assert plan.gpu_memory == []
    assert plan.gpu_memory_limit is None
    assert (plan.zero_stage, plan.micro_batch_tokens, plan.gradient_checkpointing) == (2, 2048, False)
    assert {"base model", "saved activations", "adapter and optimizer"} <= {part.name for part in plan.host_memory}


def test_on_gpus_every_part_is_named() -> None:
    plan = planned()
    assert plan.gpu_memory_limit == 80 * 2**30
    assert {"CUDA context", "base model", "adapter and optimizer", "saved activations", "loss chunk"} <= {
        part.name for part in plan.gpu_memory
    }
    assert "base while loading" in {part.name for part in plan.host_memory}
    assert {"base model", "tokens", "checkpoints and adapter"} >= {"base model"}
    assert "base model" in {part.name for part in plan.local_disk}


def test_the_profile_gives_the_memory_that_the_job_does_not() -> None:
    run = a_run(RunSettings(gpu_memory={"big": "141Gi"}), distribution={"profile": "big"})
    assert build_train_plan(run, an_inspected_model(), an_index()).gpu_memory_limit == 141 * 2**30


def test_what_is_really_free_counts_more_than_what_was_said() -> None:
    assert planned(free=20 * 2**30).gpu_memory_limit == 20 * 2**30


def test_a_run_that_does_not_fit_is_refused() -> None:
    error = refusal(distribution={"gpuMemory": "768Mi"})
    assert error.reason is FailureReason.DOES_NOT_FIT
    assert "and has 768 MiB" in error.message


def test_max_length_follows_the_model() -> None:
    assert planned().max_length == 512
    assert planned(training={"maxLength": 400}).max_length == 400


def test_targets_name_modules_and_experts() -> None:
    plan = planned(model=MIXTRAL, lora={"targets": {"preset": "AllWithExperts"}})
    assert "model.layers.1.mlp.experts.down_proj" in plan.target_modules
    assert "expert weights with adapter" in {part.name for part in plan.gpu_memory}
    assert planned(model=MIXTRAL).trainable_parameters < plan.trainable_parameters


def test_phi3_is_planned_with_its_fused_projections() -> None:
    plan = planned(model=an_inspected_model(config("phi3", "Phi3ForCausalLM"), phi3_tensors()))
    assert len(plan.target_modules) == 8


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "longer than the model": (
        {"training": {"maxLength": 1000}},
        ["training.maxLength is 1000", "allows 512 tokens"],
    ),
    "micro-batch too small": (
        {"training": {"microBatchTokens": 128}},
        ["longest example has 300 tokens", "microBatchTokens to 300 or more, or maxLength to 128 or less"],
    ),
    "memory that is no quantity": ({"distribution": {"gpuMemory": "0Gi"}}, ["gpuMemory is '0Gi'", "such as 80Gi"]),
    "a target that is not there": ({"lora": {"targets": {"modules": ["w1"]}}}, ["lora.targets.modules names w1"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_contradict_model_or_data_are_refused(case: str) -> None:
    spec, words = REFUSED[case]
    error = refusal(**spec)
    assert error.reason is FailureReason.SPEC_INVALID
    for word in words:
        assert word in error.message


def test_a_gate_needs_validation_examples() -> None:
    error = refusal({"validation_examples": 0}, evaluation={"gate": {"minRelativeImprovement": 0.1}})
    assert error.reason is FailureReason.SPEC_INVALID
    assert "evaluation.gate needs validation examples" in error.message


def test_packing_is_refused_where_it_would_mix_examples() -> None:
    tensors = llama_tensors() | {
        f"model.layers.{n}.mlp.experts.{name}": ("BF16", shape)
        for n in range(2)
        for name, shape in (("gate_up_proj", (4, 32, 96)), ("down_proj", (4, 48, 32)))
    }
    model = an_inspected_model(config("gpt_oss", "GptOssForCausalLM"), tensors)
    assert planned(model=model).packing is False
    assert planned(model=model).micro_batch_tokens == 300
    error = refusal(model=model, training={"packing": "Always"})
    assert "packing is Always" in error.message


LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
PHI3_LONG = config("phi3", "Phi3ForCausalLM", original_max_position_embeddings=256, rope_scaling=LONGROPE)


def test_longrope_is_packed_only_while_no_example_changes_the_positions_of_others() -> None:
    model = an_inspected_model(PHI3_LONG, phi3_tensors())
    assert planned({"longest": 256}, model).packing is True
    alone = planned({"longest": 257}, model)
    assert alone.packing is False
    assert any("not packed (LongRoPE" in warning for warning in alone.warnings)
    error = refusal({"longest": 257}, model, training={"packing": "Always"})
    assert error.reason is FailureReason.SPEC_INVALID
    assert "beyond 256 tokens" in error.message and "maxLength to 256 or less" in error.message
    never = planned({"longest": 256}, model, training={"packing": "Never"})
    assert any("not packed (training.packing is Never)" in warning for warning in never.warnings)


WARNINGS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "batch larger than the dataset": ({"epoch_examples": 10, "epoch_tokens": 1000}, {}, "an epoch has 10 examples"),
    "few steps": ({}, {"training": {"maxSteps": 5}}, "There are only 5 steps"),
    "few trained tokens": ({"epoch_trained_tokens": 500}, {}, "Only 0.5% of the tokens carry loss"),
    "learning rate": ({}, {"training": {"learningRate": 0.01}}, "learningRate is 0.01"),
    "large adapter": ({}, {"lora": {"rank": 64}}, "of the base model's parameters"),
    "unknown GPU": ({}, {"distribution": {}}, "set distribution.gpuMemory"),
    "idle processes": (
        {},
        {"distribution": {**GPU, "gpusPerWorker": 4}, "training": {"globalBatchSize": 2}},
        "leaves some of 4 processes idle",
    ),
    "samples without rows": ({"validation_examples": 0}, {"evaluation": {"samples": 4}}, "no validation examples"),
    "what the data report notes": ({"report": {"notes": ["12 examples are cut."]}}, {}, "12 examples are cut."),
    "traffic between nodes": (
        {},
        {"distribution": {**GPU, "workers": 2, "gpusPerWorker": 8, "zeroStage": 3}},
        "Stage 3 over 2 nodes moves about",
    ),
    "vLLM's rank": (
        {},
        {"lora": {"rank": 20}, "output": {"uri": "s3://a/x", "servableBy": ["VLLM"]}},
        "--max-lora-rank 32",
    ),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_what_is_worth_knowing_is_said(case: str) -> None:
    index, spec, words = WARNINGS[case]
    assert any(words in warning for warning in planned(index, **spec).warnings)


def test_an_ordinary_run_has_nothing_to_warn_of() -> None:
    assert planned(lora={"rank": 1}).warnings == []


def test_half_precision_weights_are_pointed_out() -> None:
    model = an_inspected_model(tensors=llama_tensors(dtype="F16"))
    assert any("float16" in warning for warning in planned(model=model).warnings)


def test_servers_that_cannot_load_the_adapter_are_named_before_training() -> None:
    output = {"uri": "s3://adapters/x", "servableBy": ["VLLM"]}
    error = refusal(model=MIXTRAL, output=output, lora={"targets": {"preset": "AllWithExperts"}})
    assert error.reason is FailureReason.SPEC_INVALID
    assert "vLLM does not load adapters of routed experts" in error.message
    ministral = an_inspected_model(config("ministral", "MinistralForCausalLM"))
    error = refusal(model=ministral, output=output)
    assert "output.servableBy asks for VLLM" in error.message
    assert "Ministral" in error.message
    assert not any("vLLM" in warning for warning in planned(model=MIXTRAL, output=output).warnings)


def test_what_ifs_answer_for_gpus_also_when_the_job_has_none() -> None:
    rows = what_ifs(a_run(distribution=CPU), an_inspected_model(), an_index())
    assert {row.gpus for row in rows} == {1, 2, 4, 8, 16}
    assert all(row.fits for row in rows)


@pytest.mark.parametrize(
    ("text", "size"), [("80Gi", 80 * 2**30), ("1.5G", 1_500_000_000), ("1Ei", 2**60), ("2k", 2000)]
)
def test_quantities_are_bytes(text: str, size: int) -> None:
    assert quantity_bytes(text, "field") == size


@pytest.mark.parametrize("text", ["1e9", "80 Gi", "infinity", "80GB", "0"])
def test_what_the_api_does_not_take_is_no_quantity_here(text: str) -> None:
    with pytest.raises(CloisterError, match=f"field is '{text}'; a quantity such as 80Gi was expected"):
        quantity_bytes(text, "field")


def test_bytes_are_readable() -> None:
    assert [readable(size) for size in (512, 2048, 3 * 2**20, 80 * 2**30, 2**41)] == [
        "512 B",
        "2 KiB",
        "3 MiB",
        "80 GiB",
        "2 TiB",
    ]
