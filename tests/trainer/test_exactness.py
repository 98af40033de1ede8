"""Training against the plain truth of one torch process with one big batch, with the bounds of docs/exactness.md."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from cloister_api.events import Progress
from cloister_trainer.train.messages import Ended
from support.plain_loop import PlainLoop, Trained, save_start
from support.tiny_rank import StepTold
from support.tiny_ranks import run_ranks
from support.tiny_run import TinyRun, make_run

STEPS = 12
BATCHES: dict[str, Any] = {"steps": STEPS, "train": 23}
TRAINING: dict[str, Any] = {
    "globalBatchSize": 7,
    "maxGradNorm": 0.25,
    "weightDecay": 0.1,
    "warmupRatio": 0.25,
    "optimizer": {"beta1": 0.8, "beta2": 0.99},
}
"""The fourth batch of an epoch holds two examples, so that three ranks are short of work. Some steps are clipped."""

# Two runs may differ by twice what each may differ from the truth.
CURVE_FP32 = 1e-5 / 2
CURVE_BF16, CURVE_BF16_MEAN = 2e-2 / 2, 5e-3 / 2
ADAPTER_FP32 = 1e-4 / 2
GRADIENT = 1e-5
"""Norm of the difference by the norm of the gradient, for each tensor."""

Layout = tuple[int, int, bool]
"""ZeRO stage, ranks, packing."""
EVERY_TIME: dict[str, list[Layout]] = {
    "FP32": [(0, 1, False), (0, 2, True), (1, 3, True), (2, 2, False), (2, 3, True), (3, 2, True)],
    "BF16": [(0, 3, True), (2, 2, True), (3, 2, False)],
}


def layouts(precision: str) -> list[Any]:
    """Every stage, 1 to 3 ranks, packing on and off; all but a few for long runs of the tests."""
    named = {layout: "stage {} x{} {}".format(*layout[:2], "packed" if layout[2] else "unpacked") for layout in ALL}
    few = EVERY_TIME[precision]
    return [pytest.param(*x, id=named[x], marks=[] if x in few else [pytest.mark.soak]) for x in ALL]


ALL = list(product(range(4), (1, 2, 3), (True, False)))


class Truth:
    """The model and tokens that all runs share, and what the plain loop makes of them."""

    def __init__(self, root: Path) -> None:
        self.inputs = root / "inputs"
        self._root = root
        self._known: dict[tuple[str, bool], tuple[Path, PlainLoop, Trained]] = {}

    def of(self, precision: str, *, new: bool) -> tuple[Path, PlainLoop, Trained]:
        """The adapter that the run begins with, the loop, and what it trained; `new`: B is 0 at the beginning."""
        if (precision, new) not in self._known:
            root = self._root / f"{precision}-{new}"
            tiny = self.run(root, precision)
            start = save_start(tiny, root / "start", random_b=not new)
            self._known[precision, new] = start, PlainLoop(tiny, start), PlainLoop(tiny, start).train()
        return self._known[precision, new]

    def run(self, root: Path, precision: str, *, start: Path | None = None, **settings: Any) -> TinyRun:
        lora: dict[str, Any] = {"rank": 4, "alpha": 8}
        if start is not None:
            lora["initFrom"] = {"uri": start.as_uri()}
        training = {**TRAINING, "precision": precision}
        return make_run(root, inputs=self.inputs, lora=lora, training=training, **BATCHES, **settings)


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    return Truth(tmp_path_factory.mktemp("truth"))


def packed(tiny: TinyRun, packing: bool) -> TinyRun:
    plan = tiny.plan.plan.model_copy(update={"packing": packing})
    return TinyRun(tiny.root, tiny.run, tiny.plan.model_copy(update={"plan": plan}))


def curve_differences(tiny: TinyRun, trained: Trained) -> list[float]:
    rows = tiny.metrics()
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return [abs(row["loss"] - loss) for row, loss in zip(rows, trained.losses, strict=True)]


def adapter_difference(tiny: TinyRun, trained: Trained) -> float:
    adapter = load(tiny.adapter())
    assert adapter.keys() == trained.adapter.keys()
    return max(float((adapter[name] - tensor).abs().max()) for name, tensor in trained.adapter.items())


def relative_difference(found: Tensor, expected: Tensor) -> float:
    size = float(expected.norm())
    assert size > 0
    return float((found - expected).norm()) / size


@pytest.mark.parametrize(("stage", "ranks", "packing"), layouts("FP32"))
def test_in_fp32_gradients_curve_and_adapter_are_the_plain_ones(
    truth: Truth, tmp_path: Path, stage: int, ranks: int, packing: bool
) -> None:
    """B is not 0 at the beginning. The gradients are those that the optimizer is given, where it is given them."""
    start, plain, trained = truth.of("FP32", new=False)
    tiny = packed(truth.run(tmp_path, "FP32", start=start, stage=stage, workers=ranks), packing)
    found = run_ranks(tiny, ranks, as_if_large=stage == 3, told_steps=4)
    assert found.end() == Ended("finished", STEPS)

    told = found.of(StepTold)
    assert [step.step for step in told] == [1, 2, 3, 4]
    for step in told:
        expected = plain.gradients(step.step, {name: torch.from_numpy(x) for name, x in step.adapter.items()})
        assert expected.keys() == step.gradients.keys()
        for name, gradient in step.gradients.items():
            assert relative_difference(torch.from_numpy(gradient), expected[name]) <= GRADIENT, (step.step, name)
    assert max(curve_differences(tiny, trained)) <= CURVE_FP32
    assert adapter_difference(tiny, trained) <= ADAPTER_FP32
    norms = [row["gradNorm"] for row in tiny.metrics()]
    assert min(norms) < TRAINING["maxGradNorm"] < max(norms)


@pytest.mark.parametrize(("stage", "ranks", "packing"), layouts("BF16"))
def test_in_bf16_the_curve_is_the_plain_one_but_for_rounding(
    truth: Truth, tmp_path: Path, stage: int, ranks: int, packing: bool
) -> None:
    _, _, trained = truth.of("BF16", new=True)
    tiny = packed(truth.run(tmp_path, "BF16", stage=stage, workers=ranks), packing)
    assert run_ranks(tiny, ranks, as_if_large=stage == 3).end() == Ended("finished", STEPS)
    differences = curve_differences(tiny, trained)
    assert max(differences) <= CURVE_BF16
    assert sum(differences) / STEPS <= CURVE_BF16_MEAN


def test_on_two_one_and_three_ranks_in_turn_a_new_adapter_ends_as_the_plain_one(truth: Truth, tmp_path: Path) -> None:
    """Each start goes on from the checkpoint of the one before, which another number of ranks wrote."""
    _, _, trained = truth.of("FP32", new=True)
    tiny = truth.run(tmp_path, "FP32", workers=2)
    first = run_ranks(tiny, 2, at_step(2, "stop"), attempt=1).end()
    second = run_ranks(tiny, 1, at_step(first.step + 2, "stop"), attempt=2).end()
    assert (first.how, second.how) == ("interrupted", "interrupted")
    assert 2 <= first.step < second.step < STEPS
    assert run_ranks(tiny, 3, attempt=3).end() == Ended("finished", STEPS)
    assert tiny.checks()["worldSizes"] == [2, 1, 3]
    assert max(curve_differences(tiny, trained)) <= CURVE_FP32
    assert adapter_difference(tiny, trained) <= ADAPTER_FP32


def test_with_dropout_a_run_that_was_stopped_ends_with_the_same_bits(truth: Truth, tmp_path: Path) -> None:
    """On the same number of ranks, activations recomputed: masks follow step, rank, micro-batch and module alone."""
    lora = {"rank": 4, "alpha": 8, "dropout": 0.2}
    runs = [make_run(tmp_path / name, inputs=truth.inputs, workers=2, lora=lora, **BATCHES) for name in ("one", "two")]
    whole, stopped = (recomputing(tiny) for tiny in runs)
    assert run_ranks(whole, 2).end() == Ended("finished", STEPS)
    end = run_ranks(stopped, 2, at_step(3, "stop")).end()
    assert end.how == "interrupted" and end.step < STEPS
    assert run_ranks(stopped, 2, attempt=2).end() == Ended("finished", STEPS)
    assert stopped.adapter() == whole.adapter()
    assert [row["loss"] for row in stopped.metrics()] == [row["loss"] for row in whole.metrics()]


def recomputing(tiny: TinyRun) -> TinyRun:
    plan = tiny.plan.plan.model_copy(update={"gradient_checkpointing": True})
    return TinyRun(tiny.root, tiny.run, tiny.plan.model_copy(update={"plan": plan}))


def at_step(step: int, what: str) -> Callable[[Any, Callable[[str], None]], None]:
    def watch(message: Any, act: Callable[[str], None]) -> None:
        if isinstance(message, Progress) and message.step == step:
            act(what)

    return watch
