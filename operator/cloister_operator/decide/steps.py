"""prepare and publish: run a step's Job until it says how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, TypeVar

from cloister_api.reasons import ConditionReason, FailureReason
from cloister_api.status import ConditionType, Phase
from cloister_api.termination import Outcome
from cloister_operator.decide.draft import Draft
from cloister_operator.decide.evidence import Failure, obstacle, pod_failure, said_failure, step_failure
from cloister_operator.decide.messages import timestamp
from cloister_operator.decide.retry import give_up, pause, storage_pause
from cloister_operator.names import Step, step_name
from cloister_operator.observe.facts import StepJob
from cloister_operator.render.step_jobs import step_job_object

Result = TypeVar("Result")
PHASES = {Step.PREPARE: Phase.PREPARING, Step.PUBLISH: Phase.PUBLISHING}
SOONEST_LOOK = timedelta(seconds=2)
RAREST_LOOK = timedelta(minutes=1)


def run_step(d: Draft, step: Step, read: Callable[[Mapping[str, Any]], Result | None]) -> Result | None:
    """The step's result once it succeeded. None while it runs, waits or failed; the draft says which."""
    job, phase = d.o.steps.get(step), PHASES[step]
    stops = d.spec.suspend and step is Step.PREPARE
    if job is None:
        d.active(False)
        if stops:
            suspend(d)
        elif d.may_create("Job", step_name(d.o.job.name, step), phase):
            d.advance(phase)
            d.create(step_job_object(d.o.job, d.spec, d.settings, step, d.status.retries or 0), phase)
        return None
    if job.managed_elsewhere:
        message = f"Job {job.name} was handed to {job.managed_elsewhere}, so its pods would run in another cluster."
        d.fail(Failure(FailureReason.POLICY_DENIED, message))
        return None
    if job.complete and not job.deleting and (found := _result(job, step, read)) is not None:
        d.active(False, job.ended)
        return found
    if job.deleting:
        d.active(False)
        if stops:
            suspend(d)
        else:
            d.wait(phase, ConditionReason.STARTING, f"Job {job.name} is being deleted before it runs again.")
    elif job.complete or job.failed:
        d.active(False, job.ended)
        _try_again(d, step, job, step_failure(job), stops=stops)
    elif stops:
        d.active(False)
        d.delete(job)
        suspend(d)
    else:
        _watch(d, step, job)
    return None


def suspend(d: Draft) -> None:
    """The job is stopped by its owner."""
    d.wait(Phase.SUSPENDED, ConditionReason.SUSPENDED, "The job is suspended.")
    d.condition(ConditionType.SUSPENDED, True, ConditionReason.SUSPENDED)


def resume(d: Draft) -> None:
    """The job is not, or no longer, stopped."""
    if d.holds(ConditionType.SUSPENDED) and not d.spec.suspend:
        d.condition(ConditionType.SUSPENDED, False, ConditionReason.RESUMED)


def _result(job: StepJob, step: Step, read: Callable[[Mapping[str, Any]], Result | None]) -> Result | None:
    """What the newest pod left, when it is whole."""
    for container in job.pods[-1].containers if job.pods else ():
        said = container.message
        if container.name == step.value and container.exit_code == 0 and said and said.outcome is Outcome.SUCCEEDED:
            return read(said.result or {})
    return None


def _try_again(d: Draft, step: Step, job: StepJob, failure: Failure, *, stops: bool) -> None:
    """After a run of the step that failed, or does not start. The Job has its ordinal: no failure is counted twice."""
    waits_for_store = failure.reason is FailureReason.STORAGE_UNAVAILABLE
    retries = (d.status.retries or 0) if waits_for_store else max(d.status.retries or 0, job.ordinal + 1)
    if final := give_up(d, failure, retries):
        _note_egress(d, final)
        d.fail(final)
        return
    if not waits_for_store:
        d.set(storage_unavailable_since=None)
    d.set(retries=retries)
    due = d.o.now
    if job.ended is not None:
        due = job.ended + (storage_pause(d, job.ended) if waits_for_store else pause(retries))
    if stops:
        d.delete(job)
        suspend(d)
    elif d.o.now >= due:
        d.delete(job)
        d.wait(PHASES[step], failure.reason, f"{failure.message} It is tried again now.")
    else:
        d.wait(PHASES[step], failure.reason, f"{failure.message} It is tried again at {timestamp(due)}.")
        d.look_again(due)


def _watch(d: Draft, step: Step, job: StepJob) -> None:
    """While the Job runs."""
    phase = PHASES[step]
    running = any(pod.phase == "Running" and not pod.deleting for pod in job.pods)
    d.active(running and step is Step.PREPARE)
    held = job.suspended
    if held or job.workload:
        words = f": {job.workload.message}" if job.workload and job.workload.message else ""
        d.condition(
            ConditionType.QUOTA_RESERVED, not held, ConditionReason.CPU_QUOTA if held else ConditionReason.ADMITTED
        )
        if held:
            d.wait(phase, ConditionReason.CPU_QUOTA, f"Job {job.name} waits for quota{words}")
            return
    if not running:
        look_for_events(d, job.created)
    stuck = obstacle(job.pods, job.notices)
    ended = said_failure(job) or pod_failure(job.pods[-1:])
    if stuck and not d.wait_for(phase, stuck.reason, stuck.message):
        _try_again(d, step, job, Failure(FailureReason(stuck.reason), stuck.message), stops=False)
    elif not stuck and ended and not running:
        d.wait(phase, ended.reason, f"{ended.message} It is tried again by itself.")
        if ended.reason is FailureReason.STORAGE_UNAVAILABLE and d.status.storage_unavailable_since is None:
            d.set(storage_unavailable_since=timestamp(d.o.now))
    elif not stuck:
        d.advance(phase)


def look_for_events(d: Draft, since: datetime) -> None:
    """Warning Events are not watched: look for them soon after something was made, then ever more rarely."""
    d.look_again(d.o.now + min(max(d.o.now - since, SOONEST_LOOK), RAREST_LOOK))


def _note_egress(d: Draft, failure: Failure) -> None:
    if failure.reason in (FailureReason.EGRESS_NOT_ENFORCED, FailureReason.EGRESS_UNPROVEN):
        enforced = failure.reason is FailureReason.EGRESS_NOT_ENFORCED
        reason = ConditionReason.NOT_ENFORCED if enforced else ConditionReason.UNPROVEN
        d.condition(ConditionType.EGRESS_RESTRICTED, False, reason)
