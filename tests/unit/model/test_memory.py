"""The memory plan as arithmetic: what must hold for every model and every set of devices."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
import yaml

from cloister_api.spec_cluster import Offload
from cloister_api.spec_training import AutoMode, Quantization
from cloister_trainer.model.advice import does_not_fit, fitting_lines, what_if_rows
from cloister_trainer.model.cost import LayerCost, ModelCost
from cloister_trainer.model.memory import FEW_TOKENS, MemoryPlan, plan_memory
from cloister_trainer.model.memory_parts import (
    GIB,
    Choice,
    PlanInputs,
    base_bytes,
    device_parts,
    reduce_bucket_elements,
)


def model(billions: float, layers: int, hidden: int, adapted_experts: int = 0) -> ModelCost:
    """A Llama-like model: saved bytes as cost.py counts them for such shapes."""
    per_layer = int(billions * 1e9 * 0.95 / layers)
    layer = LayerCost(per_layer, 53 * hidden, adapted_experts)
    return ModelCost(
        layers=(layer,) * layers,
        other_parameters=int(billions * 0.05e9),
        largest_parameter=128_256 * hidden,
        linear_parameters=layers * per_layer,
        largest_linear=4 * hidden * hidden,
        hidden=hidden,
        vocabulary=128_256,
        heads=hidden // 128,
        query_width=hidden,
        key_value_width=hidden // 2,
        element_bytes=2,
        trainable_parameters=layers * hidden * 300,
    )


SMALL, MIDDLE, LARGE, HUGE = (
    model(1.2, 16, 2048),
    model(8, 32, 4096),
    model(70, 80, 8192),
    model(405, 126, 16384),
)


def inputs(
    cost: ModelCost = MIDDLE, gib: float | None = 80, gpus: int = 1, workers: int = 1, **others: object
) -> PlanInputs:
    values = PlanInputs(
        cost=cost,
        longest=2048,
        tokens_per_step=16_384,
        examples_per_step=16,
        workers=workers,
        gpus_per_worker=gpus,
        min_workers=workers,
        gpu_memory=None if gib is None else int(gib * GIB),
    )
    return replace(values, **others)  # type: ignore[arg-type]


def some_inputs(count: int) -> list[PlanInputs]:
    draw = random.Random(1)
    found = []
    for _ in range(count):
        workers = draw.choice([1, 2, 4, 8])
        found.append(
            inputs(
                draw.choice([SMALL, MIDDLE, LARGE, HUGE, model(8, 32, 4096, adapted_experts=10**9)]),
                draw.choice([16, 24, 40, 80, 141]),
                draw.choice([1, 2, 4, 8]),
                workers,
                longest=draw.choice([64, 500, 2048, 8192, 32768]),
                min_workers=draw.randint(1, workers),
                tokens_per_step=draw.choice([100, 5000, 100_000]),
                examples_per_step=draw.choice([1, 16, 1000]),
                packing=draw.random() < 0.8,
                eager_attention=draw.random() < 0.2,
                checkpointing=draw.choice(list(AutoMode)),
                quantization=draw.choice([Quantization.NONE, Quantization.NONE, Quantization.NF4]),
            )
        )
    return found


@pytest.mark.parametrize("case", range(60))
def test_every_part_is_positive_and_the_peak_is_their_sum(case: int) -> None:
    plan = plan_memory(some_inputs(60)[case])
    assert all(part.bytes > 0 for part in plan.parts)
    assert len({part.name for part in plan.parts}) == len(plan.parts)
    assert plan.peak_bytes == sum(part.bytes for part in plan.parts)
    assert plan.fits == (plan.limit is not None and plan.peak_bytes <= plan.limit)


@pytest.mark.parametrize("case", range(60))
def test_the_choice_respects_what_is_fixed_and_holds_the_longest_example(case: int) -> None:
    given = some_inputs(60)[case]
    choice = plan_memory(given).choice
    assert choice.micro_batch_tokens >= given.longest
    assert given.checkpointing is not AutoMode.ALWAYS or choice.gradient_checkpointing
    assert given.checkpointing is not AutoMode.NEVER or not choice.gradient_checkpointing
    assert given.quantization is Quantization.NONE or choice.zero_stage <= 2
    assert choice.zero_stage in (2, 3)


@pytest.mark.parametrize("case", range(60))
def test_longer_examples_never_need_less(case: int) -> None:
    given = some_inputs(60)[case]
    choice = plan_memory(given).choice
    longer = replace(choice, micro_batch_tokens=2 * choice.micro_batch_tokens)
    assert total(given, longer) > total(given, choice)
    if plan_memory(replace(given, longest=2 * given.longest)).fits:
        assert plan_memory(given).fits


@pytest.mark.parametrize("case", range(60))
def test_more_devices_never_make_it_worse(case: int) -> None:
    given = replace(some_inputs(60)[case], workers=2, min_workers=2, gpus_per_worker=2)
    for more in (
        replace(given, gpus_per_worker=4),
        replace(given, workers=4, min_workers=4),
        replace(given, gpu_memory=2 * (given.gpu_memory or 0)),
    ):
        before, after = plan_memory(given), plan_memory(more)
        assert after.fits or not before.fits
        if before.fits:
            assert after.choice.zero_stage <= before.choice.zero_stage


def total(given: PlanInputs, choice: Choice) -> int:
    return sum(part.bytes for part in device_parts(given, choice))


def test_checkpointing_needs_less_than_keeping_activations() -> None:
    for cost, tokens in itertools.product((SMALL, MIDDLE, LARGE), (2048, 16_384)):
        assert total(inputs(cost), Choice(2, True, tokens)) < total(inputs(cost), Choice(2, False, tokens))


def test_the_lowest_stage_whose_base_fits_is_chosen() -> None:
    assert plan_memory(inputs(MIDDLE, 80, gpus=8)).choice.zero_stage == 2
    assert plan_memory(inputs(LARGE, 80, gpus=8)).choice.zero_stage == 3
    assert plan_memory(inputs(LARGE, 192, gpus=8)).choice.zero_stage == 2


def test_recomputation_only_where_it_is_needed() -> None:
    assert not plan_memory(inputs(SMALL, 80)).choice.gradient_checkpointing
    tight = plan_memory(inputs(MIDDLE, 24))
    assert tight.choice.gradient_checkpointing
    assert tight.choice.micro_batch_tokens >= FEW_TOKENS


def test_stage_3_divides_the_base_among_the_fewest_workers_that_may_be_left() -> None:
    given = inputs(LARGE, 80, gpus=8, workers=4, min_workers=2)
    shard = next(part for part in plan_memory(given).parts if part.name == "base shard")
    assert shard.bytes == -(-base_bytes(given) // 16)
    assert "1/16 of the base; at minWorkers 2" in shard.note


def test_a_second_copy_within_each_node_where_it_fits() -> None:
    roomy = plan_memory(inputs(LARGE, 80, gpus=8, workers=2))
    assert roomy.choice.hpz
    assert "hpZ copy" in [part.name for part in roomy.parts]
    assert not plan_memory(inputs(LARGE, 80, gpus=8)).choice.hpz
    assert not plan_memory(inputs(HUGE, 80, gpus=8, workers=4)).choice.hpz


def test_a_batch_that_is_small_needs_no_large_micro_batch() -> None:
    few = plan_memory(inputs(SMALL, 80, longest=300, tokens_per_step=2000))
    assert 2000 <= few.choice.micro_batch_tokens < 4000
    shared = plan_memory(inputs(SMALL, 80, gpus=8, longest=300, tokens_per_step=2000))
    assert 300 <= shared.choice.micro_batch_tokens < 600


def test_no_micro_batch_is_longer_than_a_batch_of_the_longest_examples() -> None:
    given = inputs(SMALL, 80, longest=4000, tokens_per_step=16_000, examples_per_step=4)
    assert plan_memory(given).choice.micro_batch_tokens == 16_000
    assert plan_memory(replace(given, gpus_per_worker=2)).choice.micro_batch_tokens == 8000
    assert plan_memory(replace(given, gpus_per_worker=3)).choice.micro_batch_tokens == 8000


def test_without_packing_a_micro_batch_is_one_example() -> None:
    assert plan_memory(inputs(packing=False, longest=1234)).choice.micro_batch_tokens == 1234


def test_attention_of_transformers_own_is_quadratic() -> None:
    given = inputs(eager_attention=True)
    once, twice = (
        next(p.bytes for p in device_parts(given, Choice(2, True, t)) if p.name == "attention scores")
        for t in (2048, 4096)
    )
    assert twice == 4 * once


def test_cpus_get_a_moderate_micro_batch_and_no_limit() -> None:
    plan = plan_memory(inputs(SMALL, None, gpus=0, workers=2, longest=300))
    assert plan.limit is None
    assert plan.fits
    assert plan.choice == Choice(2, False, 2048)
    assert plan_memory(inputs(SMALL, None, gpus=0, longest=5000)).choice.micro_batch_tokens == 5000


def test_gpus_of_unknown_size_recompute() -> None:
    plan = plan_memory(inputs(gib=None))
    assert plan.limit is None
    assert plan.choice.gradient_checkpointing


def test_measured_free_memory_has_the_context_in_it_already() -> None:
    names = [part.name for part in plan_memory(inputs(context_counted=True)).parts]
    assert "CUDA context" not in names
    assert "driver" not in names


def test_nf4_holds_the_layers_in_four_bits() -> None:
    plain, quantised = inputs(LARGE), inputs(LARGE, quantization=Quantization.NF4)
    assert 0.25 < base_bytes(quantised) / base_bytes(plain) < 0.35
    assert plan_memory(quantised).fits
    assert not plan_memory(plain).fits


def test_a_product_in_four_bits_dequantises_the_largest_linear_weight_not_the_embedding() -> None:
    parts = {part.name: part.bytes for part in plan_memory(inputs(MIDDLE, quantization=Quantization.NF4)).parts}
    assert parts["NF4 dequantisation"] == 2 * 2 * MIDDLE.largest_linear < 2 * MIDDLE.largest_parameter


def test_offloading_keeps_the_shards_out_of_the_gpu() -> None:
    plan = plan_memory(inputs(LARGE, 40, zero_stage=3, offload=Offload.PARAMETERS))
    assert plan.fits
    assert "base shard" not in [part.name for part in plan.parts]


def test_reduce_buckets_are_no_larger_than_the_adapter() -> None:
    assert reduce_bucket_elements(1000) == 1000
    assert reduce_bucket_elements(10**9) == 50_000_000


def test_what_does_not_fit_says_what_is_large_and_what_would_fit() -> None:
    given = inputs(LARGE, 80, gpus=1)
    message = does_not_fit(given, plan_memory(given))
    assert message.startswith("One GPU needs 1")
    assert "and has 80 GiB" in message
    assert "base model 130 GiB" in message
    assert "  distribution: {zeroStage: 3, offload: Parameters}" in message
    assert "  distribution: {workers: 4}" in message


def test_every_line_of_advice_was_planned() -> None:
    never = inputs(MIDDLE, 24, checkpointing=AutoMode.NEVER, longest=4096)
    assert not plan_memory(never).fits
    lines = fitting_lines(never)
    assert lines[0] == "training: {gradientCheckpointing: Always}"
    assert any(line.startswith("training: {maxLength: ") for line in lines)
    fixed = inputs(MIDDLE, 24, micro_batch_tokens=262_144)
    assert "training: {microBatchTokens: 2048}" in fitting_lines(fixed)
    sharded = inputs(LARGE, 80, gpus=8, zero_stage=2)
    assert "distribution: {zeroStage: 3}" in fitting_lines(sharded)
    fewer = inputs(HUGE, 80, gpus=8, workers=4, min_workers=1)
    assert "distribution: {minWorkers: 4}" in fitting_lines(fewer)
    assert "distribution: {workers: 8, minWorkers: 8}" in fitting_lines(fewer)


def test_four_bits_are_advised_where_they_fit_and_can_be_had() -> None:
    line = "lora: {quantization: NF4}"
    given = inputs(LARGE, 80)
    assert yaml.safe_load(line) == {"lora": {"quantization": "NF4"}}
    assert f"\n  {line}" in does_not_fit(given, plan_memory(given))
    assert line in fitting_lines(given)
    assert line in fitting_lines(replace(given, zero_stage=2))
    assert line not in fitting_lines(replace(given, quantizable=False))
    assert line not in fitting_lines(replace(given, zero_stage=3, gpus_per_worker=2))
    assert line not in fitting_lines(inputs(HUGE, 80))


@pytest.mark.parametrize("stage", [None, 2])
def test_no_advice_leaves_four_bits_for_a_stage_that_cannot_have_them(stage: int | None) -> None:
    given = inputs(HUGE, 80, gpus=8, quantization=Quantization.NF4, zero_stage=stage)
    assert not plan_memory(given).fits
    assert "zeroStage" not in does_not_fit(given, plan_memory(given))


def test_where_nothing_helps_it_says_so() -> None:
    hopeless = inputs(HUGE, 2, longest=256, offload=Offload.PARAMETERS, zero_stage=3)
    plan = plan_memory(hopeless)
    assert "No single change makes it fit" in does_not_fit(hopeless, plan)


def test_the_what_ifs_cover_devices_and_lengths_and_get_better_with_memory() -> None:
    rows = what_if_rows(inputs(LARGE, 80, gpus=8), 4096)
    assert len(rows) == 3 * 4 * 5
    assert {row.max_length for row in rows} == {2048, 4096, 8192}
    by_place = {(row.max_length, row.gpus, row.gpu_memory): row for row in rows}
    for (length, gpus, memory), row in by_place.items():
        assert row.fits == (row.peak_bytes <= memory)
        larger = [by_place[length, gpus, other].fits for other in {r.gpu_memory for r in rows} if other > memory]
        assert all(larger) or not row.fits
    assert by_place[4096, 8, 80 * GIB].fits
    assert not by_place[4096, 1, 24 * GIB].fits


def test_plans_are_values() -> None:
    given = inputs()
    assert plan_memory(given) == plan_memory(given)
    assert isinstance(plan_memory(given), MemoryPlan)
