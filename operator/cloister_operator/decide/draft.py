"""A decision while it is being made: the new status and the actions so far."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Literal

from cloister_api.job import FineTuneJobSpec
from cloister_api.layout import RunLayout
from cloister_api.reasons import ConditionReason, FailureReason
from cloister_api.status import (
    Attempt,
    Condition,
    ConditionType,
    EvaluationStatus,
    FailureStatus,
    OutputStatus,
    Phase,
)
from cloister_api.units import parse_duration
from cloister_operator.decide.actions import Action, Create, Decision, Delete, Mend
from cloister_operator.decide.events import events_between
from cloister_operator.decide.evidence import Failure, retryable
from cloister_operator.decide.messages import seconds_between, timestamp, with_next_step
from cloister_operator.decide.results import evaluation_of
from cloister_operator.observe.facts import Observation, RayRun, StepJob
from cloister_operator.render.run_file import TRAINER
from cloister_operator.settings import Settings

Reason = FailureReason | ConditionReason
FINAL = frozenset({Phase.COMPLETE, Phase.FAILED})
MAX_SENTENCE = 4096


class Draft:
    """What rules write down; `decision` is the result. Lives as long as one call of `decide`."""

    def __init__(self, observation: Observation, spec: FineTuneJobSpec | None) -> None:
        self.o = observation
        self._spec = spec
        self.status = observation.status
        self.actions: list[Action] = []
        self._again: datetime | None = None
        self._hindrance: tuple[Reason, str] | None = None

    @property
    def spec(self) -> FineTuneJobSpec:
        """What the job asks for."""
        if self._spec is None:
            raise LookupError("the job's spec does not parse")
        return self._spec

    # status

    def set(self, **fields: Any) -> None:
        """Fields of status; None removes one."""
        self.status = self.status.model_copy(update=fields)

    @property
    def settings(self) -> Settings:
        """The administrator's settings for what is made: with the images that the job was accepted with."""
        pinned = (self.status.images or {}).get(TRAINER, self.o.settings.images.trainer)
        images = self.o.settings.images.model_copy(update={"trainer": pinned})
        return self.o.settings.model_copy(update={"images": images})

    def wait(self, phase: Phase, reason: Reason, message: str) -> None:
        """The job waits: why, and what to do."""
        self.set(phase=phase, reason=reason.value, message=with_next_step(message, reason), waiting_since=None)

    def wait_for(self, phase: Phase, reason: Reason, message: str) -> bool:
        """Wait for what may come right by itself. False when the administrator's patience for a failure is over."""
        if isinstance(reason, ConditionReason):
            self.wait(phase, reason, message)
            return True
        waits_already = self.o.status.reason == reason.value and self.o.status.waiting_since
        since = datetime.fromisoformat(waits_already) if waits_already else self.o.now
        end = since + timedelta(seconds=parse_duration(self.o.settings.patience.pods))
        if self.o.now >= end:
            return False
        self.wait(phase, reason, f"{message.rstrip('.')}. It is given up at {timestamp(end)}.")
        self.set(waiting_since=timestamp(since))
        self.look_again(end)
        return True

    def advance(self, phase: Phase) -> None:
        """The job advances: there is nothing to say."""
        self.set(phase=phase, reason=None, message=None, waiting_since=None)

    def holds(self, kind: ConditionType, reason: ConditionReason | None = None) -> bool:
        """Whether a condition is True, and for this reason when one is given."""
        found = next((found for found in self.status.conditions or [] if found.type is kind), None)
        return found is not None and found.status == "True" and reason in (None, found.reason)

    def condition(self, kind: ConditionType, value: bool, reason: Reason, message: str = "") -> None:
        """Set a condition; its transition time moves only with its value."""
        message = message[:MAX_SENTENCE]
        status: Literal["True", "False"] = "True" if value else "False"
        conditions = list(self.status.conditions or [])
        old = next((found for found in conditions if found.type is kind), None)
        if old and (old.status, old.reason, old.message) == (status, reason.value, message):
            return
        since = old.last_transition_time if old and old.status == status else timestamp(self.o.now)
        new = Condition(
            type=kind,
            status=status,
            reason=reason.value,
            message=message,
            last_transition_time=since,
            observed_generation=self.o.job.generation,
        )
        if old:
            conditions[conditions.index(old)] = new
        else:
            conditions.append(new)
        self.set(conditions=conditions)

    # time

    def look_again(self, at: datetime) -> None:
        """Decide once more at this time, even if nothing is seen to change."""
        self._again = at if self._again is None else min(at, self._again)

    def active(self, active: bool, until: datetime | None = None) -> None:
        """Note whether pods work for the job now; where they ended, `until` says when."""
        since = self.status.active_since
        if active and since is None:
            self.set(active_since=timestamp(self.o.now))
        elif not active and since is not None:
            seconds = seconds_between(since, min(until or self.o.now, self.o.now))
            self.set(active_since=None, active_seconds=(self.status.active_seconds or 0) + seconds)
            self._count_gpus(seconds)

    def _count_gpus(self, seconds: int) -> None:
        attempt = self.open_attempt()
        if attempt is None:
            return
        used = seconds * self.spec.distribution.workers * self.spec.distribution.gpus_per_worker
        self.update(attempt, gpu_seconds=attempt.gpu_seconds + used)
        self.set(gpu_seconds=(self.status.gpu_seconds or 0) + used)

    def active_seconds(self) -> int:
        """How long the job prepared and trained until now."""
        running = seconds_between(self.status.active_since, self.o.now) if self.status.active_since else 0
        return (self.status.active_seconds or 0) + running

    # attempts

    def open_attempt(self) -> Attempt | None:
        """The newest attempt, while it has not ended."""
        newest = self.status.attempts[-1] if self.status.attempts else None
        return newest if newest is not None and newest.end is None else None

    def update(self, attempt: Attempt, **fields: Any) -> None:
        """Fields of an attempt."""
        changed = [
            found.model_copy(update=fields) if found.number == attempt.number else found
            for found in self.status.attempts or []
        ]
        self.set(attempts=changed)

    # actions

    def may_create(self, kind: str, name: str, phase: Phase) -> bool:
        """Whether a child's name is free. If not the job waits, or fails because it belongs to somebody else."""
        found = [one for one in self.o.strangers if one.name == name and one.kind == kind]
        if not found:
            return True
        if all(one.passing for one in found):
            self.wait(phase, ConditionReason.STARTING, f"{kind} {name} of an earlier job is still being deleted.")
            self.look_again(self.o.now + timedelta(seconds=5))
            return False
        message = f"There is a {kind} {name} in namespace {self.o.job.namespace} that is not this job's."
        if self.has_begun:
            self.hinder(FailureReason.NAME_CONFLICT, message)
            return True
        self.fail(Failure(FailureReason.NAME_CONFLICT, message))
        return False

    def hinder(self, reason: Reason, message: str) -> None:
        """What runs goes on, and is looked at; no Job or RayJob is made until this is over."""
        self._hindrance = reason, f"{message} What runs goes on; nothing new is made."
        self.look_again(self.o.now + timedelta(minutes=1))

    @property
    def has_begun(self) -> bool:
        """Whether the job has had a child that runs pods."""
        return bool(self.o.steps or self.o.runs or self.status.attempts) or self.holds(ConditionType.PREPARED)

    def create(self, rendered: dict[str, Any], phase: Phase) -> bool:
        """Make a Job or RayJob. False where something hinders it: that is told, and tried again for a while."""
        return self._hindrance is None and self._try(Create(rendered), phase)

    def lay(self, action: Create | Mend, phase: Phase) -> bool:
        """Make or mend what pods stand on. False where the cluster refuses that to a job that has no pods yet."""
        name = action.object["metadata"]["name"]
        if name in self.o.refused and self.has_begun:
            self.hinder(FailureReason.PODS_FORBIDDEN, f"The cluster refuses {name}: {self.o.refused[name]}.")
            self.actions.append(action)
            return True
        return self._try(action, phase)

    def _try(self, action: Create | Mend, phase: Phase) -> bool:
        name = action.object["metadata"]["name"]
        if name in self.o.refused:
            message = f"The cluster refuses {name}: {self.o.refused[name]}"
            if not self.wait_for(phase, FailureReason.PODS_FORBIDDEN, message):
                self.fail(Failure(FailureReason.PODS_FORBIDDEN, message))
                return False
        self.actions.append(action)
        return name not in self.o.refused

    def delete(self, child: StepJob | RayRun) -> None:
        """Delete a Job or RayJob with its pods, unless it is going away already."""
        if not child.deleting:
            self.actions.append(Delete("RayJob" if isinstance(child, RayRun) else "Job", child.name, child.uid))

    def delete_running(self) -> None:
        """Delete what still runs; what has ended stays for its logs."""
        for job in self.o.steps.values():
            if not (job.complete or job.failed):
                self.delete(job)
        for run in self.o.runs:
            if not run.finished:
                self.delete(run)

    # ends

    def fail(self, failure: Failure) -> None:
        """The job ends without an adapter."""
        self.active(False)
        message = with_next_step(failure.message, failure.reason)
        if self.status.checkpoint is not None:
            root = self.status.checkpoint.uri.rpartition("/checkpoints/")[0]
            message += (
                f" To go on from step {self.status.checkpoint.step}, make a new job with resumeFrom: {{uri: {root}}}"
            )
        if attempt := self.open_attempt():
            self.update(attempt, end=timestamp(self.o.now), reason=failure.reason.value, node=failure.node)
        self.set(
            phase=Phase.FAILED,
            reason=failure.reason.value,
            message=message,
            completion_time=timestamp(self.o.now),
            failure=FailureStatus(
                reason=failure.reason,
                message=message,
                retryable=retryable(failure.reason, data_was_read=self.holds(ConditionType.PREPARED)),
                step=failure.step,
                node=failure.node,
                logs_uri=self._logs_uri(),
            ),
            waiting_since=None,
            evaluation=evaluation_of(failure.result or {}) or self.status.evaluation,
            storage_unavailable_since=None,
        )
        if self.holds(ConditionType.RUNNING):
            self.condition(ConditionType.RUNNING, False, failure.reason)
        self.condition(ConditionType.FAILED, True, failure.reason, message)
        self.condition(ConditionType.STALLED, True, failure.reason, message)
        self.delete_running()

    def _logs_uri(self) -> str | None:
        """Where the ranks of the newest attempt left their logs; KubeRay removes the pods soon."""
        run_uri = (self.status.resolved or {}).get("storage", {}).get("runUri")
        if not self.status.attempt or not run_uri:
            return None
        return RunLayout(run_uri, self.o.job.uid).logs(self.status.attempt)

    def complete(self, output: OutputStatus, evaluation: EvaluationStatus | None, reason: Reason, message: str) -> None:
        """The adapter is published."""
        self.active(False)
        self.set(
            phase=Phase.COMPLETE,
            reason=reason.value if message else None,
            message=message or None,
            completion_time=timestamp(self.o.now),
            output=output,
            evaluation=evaluation or self.status.evaluation,
            storage_unavailable_since=None,
            waiting_since=None,
        )
        self.condition(ConditionType.PUBLISHED, True, reason, message)
        self.condition(ConditionType.COMPLETE, True, ConditionReason.COMPLETE)
        self.delete_running()

    def decision(self) -> Decision:
        """What was decided."""
        if self._hindrance and self.status.phase not in FINAL | {Phase.SUSPENDED, Phase.HELD, None}:
            self.wait(self.status.phase or Phase.PENDING, *self._hindrance)
        if self.status.phase is not None:
            self.set(observed_generation=self.o.job.generation)
            self.condition(ConditionType.RECONCILING, self._reconciling(), ConditionReason.ACCEPTED)
        return Decision(self.status, tuple(self.actions), events_between(self.o.status, self.status), self._again)

    def _reconciling(self) -> bool:
        """Until the job is accepted and has its first child; never while a person is to act, or at the end."""
        if self.status.phase in FINAL | {Phase.SUSPENDED, Phase.HELD}:
            return False
        before = self.o.status.conditions or []
        if any(found.type is ConditionType.RECONCILING and found.status == "False" for found in before):
            return False
        return not (self.holds(ConditionType.ACCEPTED) and self.has_begun)
