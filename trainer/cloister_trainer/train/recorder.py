"""Follows the steps: reads what the ranks agreed on, notices a loss that diverged, keeps metrics, tells the driver."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

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
_SLOW_STEP_S = 2.0


class Moment:
    """Now: on the host's clock, and on GPUs also in the device's stream, behind which the host runs ahead."""

    def __init__(self, device: torch.device) -> None:
        self._at = time.monotonic()
        self._event: Any = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._event.record()

    def seconds_until(self, later: Moment) -> float:
        """Seconds from this moment to a later one, which the device has reached."""
        if self._event is None:
            return later._at - self._at
        later._event.synchronize()
        milliseconds: float = self._event.elapsed_time(later._event)
        return milliseconds / 1000


@dataclass(frozen=True)
class _Made:
    batch: StepBatch
    learning_rate: float
    began: Moment
    ended: Moment


class Recorder:
    """One for each rank; only rank 0's keeps rows and speaks."""

    def __init__(self, context: WorkerContext, state: TrainState, metrics: MetricsBuffer, total_steps: int) -> None:
        self._context, self._state, self._metrics, self._total_steps = context, state, metrics, total_steps
        where = context.run.spec.distribution
        workers = context.world_size // max(1, where.gpus_per_worker)
        self._fewer_workers = workers if workers < where.workers else None
        self._made: deque[_Made] = deque()
        self._recent_s: deque[float] = deque(maxlen=_RATE_WINDOW_STEPS)
        self._began = Moment(self._context.device)
        self.slow = True
        """The same on all ranks: steps take so long that a step's wishes are not to wait for the end of the next."""

    def begin(self) -> None:
        """A step begins now."""
        self._began = Moment(self._context.device)

    def made(self, batch: StepBatch, learning_rate: float) -> None:
        """A step's work was handed to the device."""
        self._made.append(_Made(batch, learning_rate, self._began, Moment(self._context.device)))

    def settle(self, control: Control, all_of_them: bool) -> Wishes:
        """Read the results of all steps but the newest, or of all; the wishes that any of them carried.

        Raises CloisterError (LOSS_DIVERGED) naming the first step whose loss or gradient is not finite.
        """
        wishes = Wishes()
        while len(control) > (0 if all_of_them else 1):
            result = control.read()
            self._record(result, self._made.popleft())
            wishes = wishes | result.wishes
            self.slow = result.seconds > _SLOW_STEP_S
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
        seconds = made.began.seconds_until(made.ended)
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
            workers=self._fewer_workers,
        )
