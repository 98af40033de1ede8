"""What a run knows beside its tensors: when to evaluate, which adapter is best, when to stop."""

from __future__ import annotations

import math

from pydantic import ConfigDict

from cloister_api.base import ApiModel
from cloister_api.spec_training import Evaluation
from cloister_trainer.model.memory_parts import Choice
from cloister_trainer.records import EvaluationPoint, TrainPlan


class Layout(ApiModel):
    """How a start laid its work out on GPUs: another layout adds up the same numbers in another order."""

    ranks: int
    zero_stage: int
    gradient_checkpointing: bool
    micro_batch_tokens: int
    hpz: bool

    @classmethod
    def of(cls, plan: TrainPlan, ranks: int) -> Layout:
        """What the plan says for so many ranks."""
        return cls(
            ranks=ranks,
            zero_stage=plan.zero_stage,
            gradient_checkpointing=plan.gradient_checkpointing,
            micro_batch_tokens=plan.micro_batch_tokens,
            hpz=plan.hpz_partition is not None,
        )

    @property
    def choice(self) -> Choice:
        """To plan with."""
        return Choice(self.zero_stage, self.gradient_checkpointing, self.micro_batch_tokens, self.hpz)

    def __str__(self) -> str:
        recomputed = "recomputing" if self.gradient_checkpointing else "nothing recomputed"
        stage = f"ZeRO stage {self.zero_stage}{' with hpZ' if self.hpz else ''}"
        return f"{stage}, {recomputed}, {self.micro_batch_tokens:,} tokens a micro-batch"


class TrainState(ApiModel):
    """The run after step `step`; written into every checkpoint's index."""

    model_config = ConfigDict(frozen=False)

    step: int = 0
    evaluations: list[EvaluationPoint] = []
    """In order of step; step 0 is the base model."""
    best_step: int | None = None
    """The step from 1 on with the lowest validation loss; None without evaluation.keepBest."""
    best_loss: float | None = None
    stale_evaluations: int = 0
    """Evaluations since the loss last fell by more than earlyStopping.minDelta."""
    reference_loss: float | None = None
    """The loss that early stopping compares with."""
    stopped_early: bool = False
    last_train_loss: float | None = None
    """Mean loss per label token of the newest step."""
    train_seconds: float = 0.0
    """Spent in steps, evaluations and checkpoints, over all starts."""
    gpu_seconds: float = 0.0
    """The same times the number of GPUs."""
    world_sizes: list[int] = []
    """Number of ranks of each start that made a checkpoint."""
    layout: Layout | None = None
    """The newest start's on GPUs; None on CPUs, where the run's plan is every start's."""
    self_tests: dict[str, str] = {}
    """Name of each start-up test and what it saw, of the first start."""

    @property
    def base_loss(self) -> float | None:
        """The validation loss at step 0."""
        return self.evaluations[0].loss if self.evaluations and self.evaluations[0].step == 0 else None

    def take(self, other: TrainState) -> None:
        """Become equal to `other`."""
        for name in type(self).model_fields:
            setattr(self, name, getattr(other, name))

    def record_evaluation(self, loss: float, evaluation: Evaluation) -> bool:
        """Add the evaluation after the current step; tells whether this adapter is to be kept as the best so far."""
        stopping = evaluation.early_stopping
        self.evaluations = [*self.evaluations, EvaluationPoint(step=self.step, loss=loss)]
        if self.step == 0:
            self.reference_loss = loss
            return False
        min_delta = stopping.min_delta if stopping is not None else 0.0
        if self.reference_loss is None or loss < self.reference_loss - min_delta:
            self.reference_loss, self.stale_evaluations = loss, 0
        else:
            self.stale_evaluations += 1
        self.stopped_early = stopping is not None and self.stale_evaluations >= stopping.patience
        if evaluation.keep_best and (self.best_loss is None or loss < self.best_loss):
            self.best_step, self.best_loss = self.step, loss
            return True
        return False


def evaluation_due(step: int, total_steps: int, steps_per_epoch: int, evaluation: Evaluation) -> bool:
    """Whether the validation examples are measured after `step`: every so many steps or epochs, and at both ends."""
    if step in {0, total_steps}:
        return True
    if evaluation.every_steps is not None and step % evaluation.every_steps == 0:
        return True
    interval = evaluation.every_epochs * steps_per_epoch
    return math.floor(step / interval) > math.floor((step - 1) / interval)
