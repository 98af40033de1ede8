"""When a checkpoint is due, and what goes into it."""

from __future__ import annotations

import time
from typing import Any, Self

from torch import Tensor

from cloister_api.events import CheckpointSaved
from cloister_api.units import parse_duration
from cloister_trainer.train.checkpoint import CheckpointWriter, resume_settings
from cloister_trainer.train.checkpoint_index import CheckpointIndex
from cloister_trainer.train.context import WorkerContext
from cloister_trainer.train.control import Wishes
from cloister_trainer.train.engine import Engine
from cloister_trainer.train.engine_state import snapshot
from cloister_trainer.train.messages import Request
from cloister_trainer.train.metrics import MetricsBuffer
from cloister_trainer.train.patience import Patience
from cloister_trainer.train.state import TrainState


class Saver:
    """One for each rank: saving is a collective, and rank 0 writes. A context: its thread ends with it."""

    def __init__(
        self, context: WorkerContext, engine: Engine, state: TrainState, best: dict[str, Tensor] | None
    ) -> None:
        self._context, self._engine, self._state = context, engine, state
        self.best = best
        """The best adapter on rank 0, None before the first evaluation."""
        self.metrics = MetricsBuffer(context.run.layout, state.step)
        self._interval_s = parse_duration(context.run.spec.checkpoint.interval)
        self._settings: dict[str, Any] = resume_settings(context.run, context.plan)
        self._saved_step = state.step
        self._counted_start = False
        self._saved_at = self._counted_to = time.monotonic()
        self._writer = CheckpointWriter(
            context.storage, context.run.layout, context.run.spec.checkpoint.keep, context.scratch / "checkpoint"
        )

    def wishes(self) -> Wishes:
        """What this rank would like to happen after the current step."""
        asked = self._context.sink.request() is Request.STOP
        return Wishes(checkpoint=self._context.is_first and self._due(), interrupt=asked, evict=self._context.evicted())

    def keep_best(self) -> None:
        """The current adapter is the best so far. A collective."""
        best = snapshot(self._engine, keep=self._context.is_first, moments=False)
        self.best = best if self._context.is_first else None

    def save(self) -> None:
        """Write a checkpoint of the current step, unless there is one. A collective; the upload goes on beside it."""
        self._saved_at = time.monotonic()
        if self._saved_step == self._state.step:
            return
        tensors = snapshot(self._engine, keep=self._context.is_first)
        self._count_time()
        self._saved_step = self._state.step
        if not self._context.is_first:
            return
        self._writer.make_ready()
        step, state = self._state.step, self._state.model_copy(deep=True)

        def complete(uri: str) -> None:
            self.metrics.stored(step)
            self._context.sink.push(CheckpointSaved(step=step, uri=uri))

        self._writer.write(
            CheckpointIndex(step=step, settings=self._settings, files=[], state=state),
            tensors,
            None if state.best_step in {None, step} else self.best,
            self.metrics.part(),
            complete,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def wait(self, patience: Patience) -> None:
        """Until the newest checkpoint is complete in the store; raises what it failed with once that is no use."""
        self._writer.wait(patience)

    def _due(self) -> bool:
        return time.monotonic() - self._saved_at >= self._interval_s and not self._writer.busy

    def _count_time(self) -> None:
        now = time.monotonic()
        seconds, self._counted_to = now - self._counted_to, now
        gpus = self._context.world_size if self._context.device.type == "cuda" else 0
        self._state.train_seconds += seconds
        self._state.gpu_seconds += seconds * gpus
        if not self._counted_start:
            self._counted_start = True
            self._state.world_sizes = [*self._state.world_sizes, self._context.world_size]
