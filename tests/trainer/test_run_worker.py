"""The worker function on CPUs with gloo, without Ray: stages, world sizes, interruptions, the end of a run."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from cloister_api.errors import CloisterError
from cloister_api.events import CheckpointSaved, EvaluationDone, Progress
from cloister_api.reasons import FailureReason
from cloister_trainer.train.messages import Ended
from support.frozen_base import assert_frozen
from support.tiny_ranks import run_ranks
from support.tiny_run import TinyRun, make_run

Watch = Callable[[Any, Callable[[str], None]], None]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model and the tokens that all runs here share."""
    return tmp_path_factory.mktemp("inputs")


def at_step(step: int, what: str) -> Watch:
    """Act when rank 0 tells that `step` is made."""

    def watch(message: Any, act: Callable[[str], None]) -> None:
        if isinstance(message, Progress) and message.step == step:
            act(what)

    return watch


def at_checkpoint(step: int, what: str) -> Watch:
    """Act when a checkpoint of `step` or later is complete."""

    def watch(message: Any, act: Callable[[str], None]) -> None:
        if isinstance(message, CheckpointSaved) and message.step >= step:
            act(what)

    return watch


def assert_close(one: TinyRun, other: TinyRun, tolerance: float) -> None:
    """The same adapter and the same loss curve."""
    a, b = load(one.adapter()), load(other.adapter())
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=tolerance, rtol=0)
    losses = [[row["loss"] for row in run.metrics()] for run in (one, other)]
    assert losses[0] == pytest.approx(losses[1], abs=tolerance)


def test_every_stage_and_world_size_trains_the_same_adapter(tmp_path: Path, inputs: Path) -> None:
    one_big_batch = make_run(tmp_path / "big", inputs=inputs, micro_batch_tokens=1000)
    assert run_ranks(one_big_batch).end() == Ended("finished", 6)
    assert max(tensor.abs().max() for tensor in load(one_big_batch.adapter()).values()) > 0.01
    for stage in range(4):
        spread = make_run(tmp_path / f"stage-{stage}", inputs=inputs, workers=2, stage=stage)
        assert run_ranks(spread, 2).end() == Ended("finished", 6)
        assert_close(spread, one_big_batch, tolerance=2e-5)


def test_ranks_with_different_numbers_of_labels_shard_a_large_head(tmp_path: Path, inputs: Path) -> None:
    """Seven examples on two ranks: one is short of a micro-batch, and their chunks of the loss differ in number."""
    settings: dict[str, Any] = {"inputs": inputs, "train": 23, "validation": 7, "training": {"globalBatchSize": 7}}
    alone = make_run(tmp_path / "alone", **settings)
    run_ranks(alone).end()
    spread = make_run(tmp_path / "spread", stage=3, workers=2, micro_batch_tokens=40, **settings)
    assert run_ranks(spread, 2, as_if_large=True).end() == Ended("finished", 6)
    assert_close(spread, alone, tolerance=1e-4)


def test_what_a_run_tells_and_leaves(tmp_path: Path, inputs: Path) -> None:
    tiny = make_run(
        tmp_path,
        inputs=inputs,
        workers=2,
        validation=8,
        evaluation={"samples": 3},
        output={"uri": tmp_path.as_uri(), "mergedModel": True},
    )
    rows = [
        {"prompt": [3, 4, 5], "answer": "w6 w7"},
        {"prompt": [9], "answer": "w10"},
        {"prompt": [1, 2], "answer": ""},
    ]
    tokens = Path(tiny.plan.tokens_uri.removeprefix("file://"))
    (tokens / "index.json").write_text(json.dumps({**tiny.plan.data.to_api(), "samples": rows}))

    ranks = run_ranks(tiny, 2)

    assert ranks.end() == Ended("finished", 6)
    assert [event.step for event in ranks.of(Progress)] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in ranks.of(EvaluationDone)] == [0, 3, 6]
    assert [event.step for event in ranks.of(CheckpointSaved)] == [6]
    checks = tiny.checks()
    assert checks["readBackEqual"]
    assert_frozen(checks, inputs / "model")
    assert set(checks["selfTests"]) == {"targets", "isolation", "baseLoss", "movement", "frozenWeights"}
    assert checks["baseLoss"] == ranks.of(EvaluationDone)[0].loss
    assert checks["loss"] == min(point["loss"] for point in checks["evaluations"][1:])
    assert checks["exactMatch"]["rows"] == 3
    assert [sample["expected"] for sample in checks["samples"]] == ["w6 w7", "w10", ""]
    assert checks["worldSizes"] == [2]
    merged = load_file(tiny.stored("merged/model.safetensors"))
    base = load_file(inputs / "model" / "model.safetensors")
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {f"{name}.weight" for name in tiny.plan.plan.target_modules}
    assert json.loads(tiny.stored("merged/config.json").read_text())["model_type"] == "llama"
    metrics = tiny.metrics()
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5, 6]
    assert all(row["gradNorm"] > 0 and row["tokensPerSecond"] > row["trainedTokensPerSecond"] > 0 for row in metrics)
    assert all(0 <= row["paddingShare"] < 1 and row["memoryBytes"] > 1e7 for row in metrics)
    assert metrics[0]["learningRate"] == 1e-2
    assert {path.name for path in tiny.stored("attempts/1/logs").iterdir()} == {"rank-00.log", "rank-01.log"}


@pytest.mark.parametrize("precision", ["FP32", "BF16"])
def test_killed_at_a_random_step_it_ends_with_the_same_bits(tmp_path: Path, inputs: Path, precision: str) -> None:
    settings: dict[str, Any] = {
        "inputs": inputs,
        "workers": 2,
        "steps": 24,
        "validation": 8,
        "training": {"precision": precision},
        "checkpoint": {"interval": "0s"},
        "evaluation": {"everySteps": 5},
    }
    whole = make_run(tmp_path / "whole", **settings)
    assert run_ranks(whole, 2).end() == Ended("finished", 24)
    broken = make_run(tmp_path / "broken", **settings)
    rng = random.Random(precision)
    for attempt, step in enumerate(sorted(rng.sample(range(2, 20), 2)), start=1):
        assert run_ranks(broken, 2, at_checkpoint(step, "kill"), attempt).ends == {}
    assert run_ranks(broken, 2, attempt=3).end() == Ended("finished", 24)
    assert broken.adapter() == whole.adapter()
    assert [row["step"] for row in broken.metrics()] == list(range(1, 25))
    assert [row["loss"] for row in broken.metrics()] == [row["loss"] for row in whole.metrics()]
    assert broken.checks()["evaluations"] == whole.checks()["evaluations"]


@pytest.mark.parametrize(("stage", "steps", "precision", "tolerance"), [(0, 30, "FP32", 1e-5), (3, 15, "BF16", 2e-2)])
def test_interrupted_it_goes_on_with_the_same_bits_or_on_another_number_of_ranks(
    tmp_path: Path, inputs: Path, stage: int, steps: int, precision: str, tolerance: float
) -> None:
    settings: dict[str, Any] = {
        "inputs": inputs,
        "stage": stage,
        "steps": steps,
        "validation": 8,
        "training": {"precision": precision},
    }
    whole = make_run(tmp_path / "whole", **settings)
    run_ranks(whole, 2).end()
    stopped = make_run(tmp_path / "stopped", **settings)
    end = run_ranks(stopped, 2, at_step(2, "stop")).end()
    assert end.how == "interrupted"
    assert 2 < end.step < steps
    moved = make_run(tmp_path / "moved", resumeFrom={"uri": stopped.run.layout.root}, **settings)
    assert run_ranks(moved, 3).end() == Ended("finished", steps)
    assert run_ranks(stopped, 2).end() == Ended("finished", steps)
    assert stopped.adapter() == whole.adapter()
    losses, expected = ([row["loss"] for row in run.metrics()] for run in (moved, whole))
    assert losses == pytest.approx(expected, abs=tolerance)
    if precision == "FP32":
        a, b = load(moved.adapter()), load(whole.adapter())
        assert max((a[name] - b[name]).abs().max().item() for name in a) < 1e-4
    assert moved.checks()["worldSizes"] == [2, 3]
    assert [row["step"] for row in moved.metrics()] == list(range(1, steps + 1))
    assert "movement" in stopped.checks()["selfTests"]


def test_slow_steps_do_not_put_off_a_stop_to_the_end_of_a_further_one(tmp_path: Path, inputs: Path) -> None:
    tiny = make_run(tmp_path, inputs=inputs, workers=2)
    ranks = run_ranks(tiny, 2, at_step(1, "stop"), step_s=3)
    assert ranks.end() == Ended("interrupted", 2)
    assert [event.step for event in ranks.of(CheckpointSaved)] == [2]


def test_early_stopping_publishes_the_best_adapter(tmp_path: Path, inputs: Path) -> None:
    training = {"learningRate": 0.3, "scheduler": "Constant", "warmupRatio": 0}
    evaluation = {"everySteps": 1, "earlyStopping": {"patience": 3}}
    settings: dict[str, Any] = {"inputs": inputs, "validation": 8, "training": training, "evaluation": evaluation}
    stopped = make_run(tmp_path / "stopped", steps=40, **settings)
    end = run_ranks(stopped).end()
    best = stopped.checks()["bestStep"]
    assert (end.how, end.step) == ("finished", best + 3)
    assert end.step < 40
    losses = {point["step"]: point["loss"] for point in stopped.checks()["evaluations"]}
    assert losses[best] == min(losses[step] for step in losses if step > 0) == stopped.checks()["loss"]

    short = make_run(tmp_path / "short", steps=best, **settings)
    assert run_ranks(short).end() == Ended("finished", best)
    assert stopped.adapter() == short.adapter()

    resumed = make_run(tmp_path / "resumed", steps=40, checkpoint={"interval": "0s"}, **settings)
    assert run_ranks(resumed, 1, at_checkpoint(best + 1, "kill")).ends == {}
    assert run_ranks(resumed).end() == end
    assert resumed.adapter() == stopped.adapter()

    last = make_run(tmp_path / "last", steps=40, **{**settings, "evaluation": {**evaluation, "keepBest": False}})
    run_ranks(last).end()
    assert last.checks()["bestStep"] == best + 3
    assert last.adapter() != stopped.adapter()
    settings["evaluation"] = {**evaluation, "keepBest": False}
    killed = make_run(tmp_path / "killed", steps=40, checkpoint={"interval": "0s"}, **settings)
    assert run_ranks(killed, 1, at_checkpoint(best + 1, "kill")).ends == {}
    run_ranks(killed).end()
    assert killed.adapter() == last.adapter()


def test_a_loss_that_is_not_a_number_names_the_step(tmp_path: Path) -> None:
    make_run(tmp_path)
    poison_a_token(tmp_path / "inputs")
    tiny = make_run(tmp_path, workers=2)
    unpacked = tiny.plan.plan.model_copy(update={"packing": False})
    tiny.plan = tiny.plan.model_copy(update={"plan": unpacked})
    with pytest.raises(CloisterError) as failure:
        run_ranks(tiny, 2).end()
    assert failure.value.reason is FailureReason.LOSS_DIVERGED
    assert failure.value.step == 1
    assert "step 1" in failure.value.message and "learningRate" in failure.value.message
    log = tiny.stored("attempts/1/logs/rank-00.log").read_text()
    assert "Traceback" in log and "LossDiverged" in log
    assert not tiny.stored("checkpoints").exists()


def test_a_validation_loss_that_is_not_a_number_names_the_step(tmp_path: Path) -> None:
    make_run(tmp_path, validation=8)
    poison_a_token(tmp_path / "inputs", "tokens-24-8", "validation-00000.safetensors")
    with pytest.raises(CloisterError) as failure:
        run_ranks(make_run(tmp_path, validation=8)).end()
    assert failure.value.reason is FailureReason.LOSS_DIVERGED
    assert failure.value.step == 0
    assert "validation loss after step 0" in failure.value.message


def poison_a_token(inputs: Path, folder: str = "tokens-24-0", shard: str = "train-00000.safetensors") -> None:
    """Make the embedding of a token that the shortest example lacks not a number: start-up tests see nothing of it."""
    train = load_file(inputs / folder / "train-00000.safetensors")
    tokens, offsets = train["tokens"].tolist(), train["offsets"].tolist()
    examples: list[list[int]] = [tokens[start:end] for start, end in pairwise(offsets)]
    present = load_file(inputs / folder / shard)["tokens"].tolist()
    shortest: list[int] = sorted(examples, key=len)[0]
    token = next(iter(set(present) - set(shortest)))
    weights = inputs / "model" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.embed_tokens.weight"][token] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    (inputs / "model.json").unlink()


def test_a_rank_that_hangs_in_a_step_leaves_its_stacks_and_those_of_the_rank_that_waits_for_it(
    tmp_path: Path, inputs: Path
) -> None:
    tiny = make_run(tmp_path, inputs=inputs, workers=2, progressDeadlineSeconds=30)
    ranks = run_ranks(tiny, 2, hangs_at=3)
    failure = ranks.messages[-1]
    assert failure.reason is FailureReason.NO_PROGRESS
    logs = tiny.stored("attempts/1/logs")
    assert failure.message.endswith(f"stacks are in file://{logs}/rank-00.log, those of the other ranks beside it.")
    waiting, hanging = ((logs / f"rank-0{rank}.log").read_text().split("Stacks of process")[1] for rank in range(2))
    assert "in make_steps" in waiting and "in oddly" not in waiting
    assert "in make_steps" in hanging and "in oddly" in hanging
    assert "Rank 1 on localhost made no progress" in (logs / "rank-01.log").read_text()


def test_a_rank_that_no_longer_runs_leaves_the_stacks_of_the_others(tmp_path: Path, inputs: Path) -> None:
    tiny = make_run(tmp_path, inputs=inputs, workers=2, steps=100_000, progressDeadlineSeconds=30)
    ranks = run_ranks(tiny, 2, at_step(5, "freeze"))
    failure = ranks.messages[-1]
    assert failure.reason is FailureReason.NO_PROGRESS
    assert failure.step >= 4 and "no progress" in failure.message
    log = tiny.stored("attempts/1/logs/rank-00.log").read_text()
    assert "Stacks of process" in log and "make_steps" in log
