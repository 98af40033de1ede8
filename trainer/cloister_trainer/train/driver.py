"""Training as the step's entry point runs it: worker groups started until one has finished."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloister_api.errors import CloisterError
from cloister_api.events import CheckpointSaved, Done, Event, FailureSeen, Progress, Restarted
from cloister_api.reasons import FailureReason
from cloister_api.run import ATTEMPT_ENVIRONMENT, Run
from cloister_trainer.interrupt import Interrupted
from cloister_trainer.records import Checks, PlanFile
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import Storage
from cloister_trainer.train.checkpoint import newest_step
from cloister_trainer.train.elastic import workers_of
from cloister_trainer.train.failures import worst
from cloister_trainer.train.interruption import Interruption
from cloister_trainer.train.launch import Start, WorkerGroup, own_address, ray_cluster
from cloister_trainer.train.memory_kills import MemoryKills
from cloister_trainer.train.messages import Ended, Message, Phase, Request, Warned
from cloister_trainer.train.patience import Patience
from cloister_trainer.train.progress import Display
from cloister_trainer.train.staged import completed_checks
from cloister_trainer.train.worker_logs import upload_left_logs
from cloister_trainer.workspace import Workspace

POLL_S = 0.25
END_S = 15.0
"""How long ranks may take to store their logs."""
MAX_FRUITLESS_STARTS = 2
"""Starts in a row without a newer checkpoint."""
MAX_UNBEGUN_STARTS = 10
"""Elastic starts in a row none of whose workers was heard: those that were counted went before they had places."""
WORKERS_BACK = "WorkersBack"
"""Why training starts again without a failure."""
PROGRESS_INTERVAL_S = 1.0
"""Progress lines come no more often, except the last one."""


def train(
    run: Run,
    plan: PlanFile,
    storage: Storage,
    reporter: Reporter,
    scratch: Path,
    emit: Callable[[Event], None],
    egress: Mapping[str, Any] | None = None,
) -> Checks:
    """Train until the adapter and checks.json are staged; goes on from the newest checkpoint.

    `scratch` is the run's folder of a Workspace; `egress` this process's own proof, made before it read the plan.
    Raises Interrupted after SIGINT or SIGTERM, and CloisterError when two starts in a row made no newer checkpoint, the
    store was away for longer than STORE_PATIENCE_S, or at once for a failure that trying again cannot help.
    """
    interruption = Interruption()
    driver = Driver(run, plan, storage, reporter, scratch, emit, interruption, dict(egress or {}))
    try:
        with interruption:
            checks = driver.train()
    except KeyboardInterrupt:
        raise Interrupted(driver.kept_step()) from None
    emit(Done(step=checks.step, staged_uri=run.layout.adapter))
    return checks


@dataclass
class _Seen:
    """What one start has told so far."""

    ended: Ended | None = None
    failures: list[CloisterError] = field(default_factory=list)
    stepping: bool = False
    """Steps are being made, so that a checkpoint is worth waiting for."""


class Driver:
    """Starts worker groups until one has finished; tells the caller, the terminal and the event lines what happens."""

    def __init__(
        self,
        run: Run,
        plan: PlanFile,
        storage: Storage,
        reporter: Reporter,
        scratch: Path,
        emit: Callable[[Event], None],
        interruption: Interruption,
        egress: dict[str, Any],
    ) -> None:
        self._run, self._plan, self._storage, self._reporter = run, plan, storage, reporter
        self._scratch, self._emit, self._interruption = scratch, emit, interruption
        self._attempt = int(os.environ.get(ATTEMPT_ENVIRONMENT, "1"))
        self._ranks_per_worker = max(1, run.spec.distribution.gpus_per_worker)
        self._workers = workers_of(run.spec.distribution, self._pause, reporter.say)
        self._display = Display(reporter, plan.plan.total_steps)
        self._said_at = -math.inf
        self._egress = egress
        self._known_step = self._told_step = 0
        self._patience = Patience(self._wait_for_store)
        self._patience_with_starts = Patience(self._wait_for_store)
        """Another: a store that answers the driver may be away for the workers."""
        self._fruitless = self._unbegun = 0
        self._heard = False
        """Whether a worker of the newest start has said anything."""

    def train(self) -> Checks:
        """Returns when the adapter and checks.json are staged, with what the latter says."""
        checks = self._completed_checks()
        if checks is None:
            self._start_until_finished()
            checks = self._completed_checks()
        if checks is None:
            raise CloisterError(
                FailureReason.ADAPTER_INVALID, f"{self._run.layout.checks_file} cannot be read back after training."
            )
        return checks

    def kept_step(self) -> int | None:
        """Step of the newest checkpoint, None without one; the newest that was told of when the store is away."""
        with suppress(CloisterError):
            self._known_step = newest_step(self._storage, self._run.layout)
        return self._known_step or None

    def _start_until_finished(self) -> None:
        gpus = self._run.spec.distribution.gpus_per_worker > 0
        ranks = self._run.spec.distribution.workers * self._ranks_per_worker
        with ray_cluster(ranks, gpus), self._display:
            self._memory_kills = MemoryKills(own_address())
            self._interruption.install()
            why = ""
            for ordinal in itertools.count(1):
                step_before = self._newest_step()
                self._tell_of_checkpoint(step_before)
                try:
                    workers = self._workers.for_next_start()
                    if why:
                        self._emit(Restarted(workers=workers, reason=why))
                    ended = self._start(ordinal, workers)
                except CloisterError as error:
                    if not (error.reason.facts.retryable or self._may_fit_without_the_new_workers(error)):
                        raise
                    failure = error
                else:
                    if ended.how == "finished":
                        return
                    if ended.how == "interrupted" and self._interruption.asked.is_set():
                        raise Interrupted(ended.step)
                    if ended.how == "interrupted":
                        self._made_checkpoint()
                        why = WORKERS_BACK
                        continue
                    failure = CloisterError(FailureReason.WORKERS_LOST, "A worker was asked to go.")
                if self._interruption.asked.is_set():
                    raise Interrupted(self.kept_step())
                self._bear(failure, step_before)
                why = failure.reason.value

    def _may_fit_without_the_new_workers(self, failure: CloisterError) -> bool:
        """Those that a start grew by may have less memory free than the others."""
        return self._workers.grew and failure.reason is FailureReason.DOES_NOT_FIT

    def _made_checkpoint(self) -> None:
        """A start has made a newer one."""
        self._fruitless = self._unbegun = 0
        self._patience_with_starts.renew()
        self._workers.proved()

    def _bear(self, failure: CloisterError, step_before: int) -> None:
        """Raises the failure when another start would be of no use."""
        if self._newest_step() > step_before:
            self._made_checkpoint()
        elif failure.reason is FailureReason.STORAGE_UNAVAILABLE:
            self._patience_with_starts.wait(failure)
        elif self._workers.grew:
            self._workers.grew_in_vain()
        elif self._workers.elastic and not self._heard:
            self._unbegun += 1
        else:
            self._fruitless += 1
        if self._fruitless == MAX_FRUITLESS_STARTS or self._unbegun == MAX_UNBEGUN_STARTS:
            raise failure
        self._reporter.warn(f"{failure.message} Training starts again from its newest checkpoint.")

    def _completed_checks(self) -> Checks | None:
        return self._patience.call(lambda: completed_checks(self._run, self._storage))

    def _newest_step(self) -> int:
        self._known_step = self._patience.call(lambda: newest_step(self._storage, self._run.layout))
        return self._known_step

    def _tell_of_checkpoint(self, step: int) -> None:
        """Of one that was stored while a pod was ended: who told of it, or who listened, may have ended first."""
        if step > self._told_step:
            self._told_step = step
            self._emit(CheckpointSaved(step=step, uri=self._run.layout.checkpoint(step)))

    def _wait_for_store(self, failure: CloisterError, seconds: float) -> None:
        self._reporter.warn(f"{failure.message} Waiting {seconds:.0f} s for the store.")
        self._pause(seconds)

    def _pause(self, seconds: float) -> None:
        if self._interruption.asked.wait(seconds):
            raise Interrupted(self.kept_step())

    def _start(self, ordinal: int, workers: int) -> Ended:
        """One start of the worker group, to its end."""
        models, ranks = Workspace(self._scratch.parents[1]).models, workers * self._ranks_per_worker
        who = (self._attempt, ordinal, ranks, self._workers.elastic)
        group = WorkerGroup(Start(self._run, self._plan, *who, self._egress, self._scratch, models))
        self._heard = False
        try:
            seen = self._watch(group, workers)
        finally:
            group.close()
            upload_left_logs(self._storage, self._scratch / "logs" / str(self._attempt), self._run, self._attempt)
        if seen.ended is not None:
            return seen.ended
        failure = worst(seen.failures) if seen.failures else group.failure()
        raise self._memory_kills.explain(
            failure or CloisterError(FailureReason.INTERNAL, "The workers ended without a result.")
        )

    def _watch(self, group: WorkerGroup, workers: int) -> _Seen:
        seen, stopping, growing = _Seen(), False, False
        deadline_s = self._run.spec.progress_deadline_seconds
        over = False
        while not over:
            over = group.wait(POLL_S) or seen.ended is not None
            messages, quiet_s = group.drain()
            for message in messages:
                self._take(message, seen)
            if quiet_s > deadline_s and not over:
                seen.failures.append(CloisterError(FailureReason.NO_PROGRESS, self._silence(quiet_s, workers)))
            if any(failure.reason is FailureReason.NO_PROGRESS for failure in seen.failures):
                break  # the others store their stacks when they are asked to end, which a stalled rank waits for
            if self._interruption.asked.is_set() and not over:
                if not seen.stepping:
                    self._abort(group)
                    raise Interrupted(self.kept_step())
                if not stopping:
                    stopping = True
                    self._reporter.say("Stopping after a checkpoint; once more to stop at once.")
                    group.ask(Request.STOP)
            elif seen.stepping and not growing and self._workers.may_grow() and not over:
                growing = True
                self._reporter.say("Lost workers are back: starting again with them after a checkpoint.")
                group.ask(Request.STOP)
        group.wait(END_S) if seen.ended is not None else self._abort(group)
        return seen

    def _silence(self, quiet_s: float, workers: int) -> str:
        said = f"A worker has been silent for {quiet_s:.0f} s."
        if workers == 1:
            return said
        return f"{said} The others store the stacks of their ranks in {self._run.layout.logs(self._attempt)}."

    def _abort(self, group: WorkerGroup) -> None:
        """End the ranks that are left; each stores its stacks and its log."""
        group.ask(Request.ABORT)
        group.wait(END_S)

    def _take(self, message: Message, seen: _Seen) -> None:
        self._heard = True
        self._display.show(message)
        match message:
            case Ended():
                seen.ended = message
            case Phase():
                seen.stepping = False
            case Warned():
                self._reporter.warn(message.what)
            case FailureSeen():
                seen.failures.append(
                    CloisterError(message.reason, message.message, step=message.step, node=message.node)
                )
            case Progress():
                seen.stepping = True
                self._say_progress(message)
            case CheckpointSaved():
                self._known_step = self._told_step = message.step
                self._emit(message)
            case _:
                self._emit(message)

    def _say_progress(self, event: Progress) -> None:
        now = time.monotonic()
        if now - self._said_at >= PROGRESS_INTERVAL_S or event.step == event.total_steps:
            self._said_at = now
            self._emit(event)
