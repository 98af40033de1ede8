"""The self-tests at their times in a start, and the validation loss over all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.records import TrainPlan
from cloister_trainer.train import selftests
from cloister_trainer.train.context import WorkerContext
from cloister_trainer.train.engine_state import snapshot
from cloister_trainer.train.evaluate import evaluate
from cloister_trainer.train.examples import Examples
from cloister_trainer.train.setup import Built
from cloister_trainer.train.state import TrainState

MOVED_STEP = 2
"""B moves in step 1, A, whose gradient is 0 while B is 0, in step 2 at the latest."""


class SelfTests:
    """One for each rank. A test that fails raises CloisterError (SELF_TEST_FAILED) with its name."""

    def __init__(self, context: WorkerContext, built: Built, state: TrainState) -> None:
        self._context, self._built, self._state = context, built, state
        self._frozen = selftests.frozen_checksums(built.module)
        self._start: dict[str, Tensor] | None = None
        self._moved_step = max(MOVED_STEP, state.step + 1)

    def at_start(self, examples: Examples, plan: TrainPlan) -> None:
        """Types and targets were checked when the engine was built; here the forward pass is. A collective."""
        state, module, device = self._state, self._built.module, self._context.device
        seen = {"targets": f"{len(self._built.targets.shapes)} weights adapted"}
        if plan.packing:
            seen["isolation"] = selftests.check_isolation(module, device)
        new_adapter = state.step == 0 and self._context.run.spec.lora.init_from is None
        seen["baseLoss"] = selftests.check_base_loss(module, examples, device, new_adapter=new_adapter)
        state.self_tests = {**seen, **state.self_tests}  # what the run's first start saw stays
        if "movement" not in state.self_tests:
            self._start = snapshot(self._built.engine, keep=self._context.is_first, moments=False)

    def after_step(self) -> None:
        """After the second step, or the first after a resume, every adapter tensor has moved. A collective then."""
        if self._state.step != self._moved_step or self._start is None:
            return
        now = snapshot(self._built.engine, keep=self._context.is_first, moments=False)
        if self._context.is_first:
            self._state.self_tests = {**self._state.self_tests, "movement": selftests.check_moved(self._start, now)}
        self._start = None

    def at_end(self) -> None:
        """The frozen weights, of a shard at stage 3, are what they were when this start began."""
        seen = selftests.check_frozen(self._frozen, selftests.frozen_checksums(self._built.module))
        self._state.self_tests = {**self._state.self_tests, "frozenWeights": seen}


def validation_loss(
    context: WorkerContext, built: Built, examples: Examples, plan: TrainPlan, step: int, beat: Callable[[], None]
) -> float:
    """Mean cross-entropy per label token of the validation examples, over all ranks. A collective.

    Raises CloisterError (LOSS_DIVERGED), on every rank, when it is not finite after `step`.
    """
    total, labels = evaluate(
        built.module,
        examples,
        plan,
        rank=context.rank,
        world_size=context.world_size,
        device=context.device,
        beat=beat,
    )
    sums = torch.tensor([total, labels], dtype=torch.float64, device=context.device)
    if context.world_size > 1:
        dist.all_reduce(sums)
    loss = float(sums[0] / sums[1])
    if not math.isfinite(loss):
        raise CloisterError(
            FailureReason.LOSS_DIVERGED,
            f"The validation loss after step {step} is not a finite number. Lower training.learningRate or lora.alpha, "
            "or raise training.warmupRatio.",
            step=step,
        )
    return loss
