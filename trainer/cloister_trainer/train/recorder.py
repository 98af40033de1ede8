"""Follows the steps: reads what the ranks agreed on, notices a loss that diverged, keeps metrics, tells the driver."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from cloister_api.errors import CloisterError
from cloister_api.events import Progress
from cloister_api.reasons import FailureReason
from cloister_trainer.train.context import WorkerContext
from cloister_trainer.train.control import Control, StepResult, Wishes
from cloister_trainer.train.feed import StepBatch
from cloister_trainer.train.metrics import MetricsBuffer, MetricsRow, peak_memory_bytes
from cloister_trainer.train.state import TrainState

_RATE_WINDOW_STEPS = 20

_Mark = float | torch.cuda.Event
"""A moment: of the host's clock on CPUs, of the device's stream on GPUs, where the host runs ahead."""


@dataclass(frozen=True)
class _Made:
    batch: StepBatch
    learning_rate: float
    began: _Mark
    ended: _Mark

    @property
    def seconds(self) -> float:
        """How long the step took; asked for when its result is there."""
        if isinstance(self.began, torch.cuda.Event):
            self.ended.synchronize()
            return self.began.elapsed_time(self.ended) / 1000
        return self.ended - self.began


class Recorder:
    """One for each rank; only rank 0's keeps rows and speaks."""

    def __init__(self, context: WorkerContext, state: TrainState, metrics: MetricsBuffer, total_steps: int) -> None:
        self._context, self._state, self._metrics, self._total_steps = context, state, metrics, total_steps
        self._made: deque[_Made] = deque()
        self._recent_s: deque[float] = deque(maxlen=_RATE_WINDOW_STEPS)
        self._began = self._mark()

    def begin(self) -> None:
        """A step begins now."""
        self._began = self._mark()

    def made(self, batch: StepBatch, learning_rate: float) -> None:
        """A step's work was handed to the device."""
        self._made.append(_Made(batch, learning_rate, self._began, self._mark()))

    def settle(self, control: Control, all_of_them: bool) -> Wishes:
        """Read the results of all steps but the newest, or of all; the wishes that any of them carried.

        Raises CloisterError (LOSS_DIVERGED) naming the first step whose loss or gradient is not finite.
        """
        wishes = Wishes()
        while len(control) > (0 if all_of_them else 1):
            result = control.read()
            self._record(result, self._made.popleft())
            wishes = wishes | result.wishes
        return wishes

    def _record(self, result: StepResult, made: _Made) -> None:
        batch = made.batch
        loss = result.loss_sum / batch.labels
        if not (math.isfinite(loss) and math.isfinite(result.grad_norm)):
            what = "loss" if not math.isfinite(loss) else "gradient"
            raise CloisterError(
                FailureReason.LOSS_DIVERGED,
                f"The {what} of step {result.step} is not a finite number (learning rate {made.learning_rate:.3g}). "
                "Lower training.learningRate or lora.alpha, or raise training.warmupRatio.",
                step=result.step,
            )
        self._state.last_train_loss = loss
        if not self._context.is_first:
            return
        seconds = made.seconds
        self._recent_s.append(seconds)
        row = MetricsRow(
            step=result.step,
            epoch=round(batch.epoch, 6),
            loss=loss,
            grad_norm=result.grad_norm,
            learning_rate=made.learning_rate,
            tokens_per_second=batch.tokens / seconds,
            trained_tokens_per_second=batch.labels / seconds,
            padding_share=1 - batch.tokens / batch.slots,
            memory_bytes=peak_memory_bytes(self._context.device),
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        self._metrics.add(row)
        self._context.sink.push(self._progress(row))

    def _mark(self) -> _Mark:
        if self._context.device.type != "cuda":
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _progress(self, row: MetricsRow) -> Progress:
        seconds = sum(self._recent_s) / len(self._recent_s)
        return Progress(
            step=row.step,
            total_steps=self._total_steps,
            epoch=row.epoch,
            loss=row.loss,
            learning_rate=row.learning_rate,
            tokens_per_second=row.tokens_per_second,
            eta_seconds=round((self._total_steps - row.step) * seconds),
        )
