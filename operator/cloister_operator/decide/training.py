"""Training: one RayJob after another until an adapter is staged."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from enum import Enum

from cloister_api.reasons import ConditionReason, FailureReason
from cloister_api.spec_cluster import Hold
from cloister_api.status import Attempt, ConditionType, Phase
from cloister_api.units import parse_duration
from cloister_operator.decide.draft import Draft
from cloister_operator.decide.evidence import Failure, is_false_failure, obstacle, run_failure
from cloister_operator.decide.messages import clock, timestamp
from cloister_operator.decide.progress import seen_termination, take_notes, without_old_ends
from cloister_operator.decide.retry import failures_in_a_row, give_up, pause, storage_pause
from cloister_operator.decide.steps import look_for_events, suspend
from cloister_operator.names import QUEUE_LABEL, Role, ray_job_name
from cloister_operator.observe.facts import RayRun
from cloister_operator.render.ray_job import ray_job

KEPT_ATTEMPTS = 10
STAGED = ConditionReason.COMPLETE.value
"""An attempt's reason when its adapter is staged."""


class Outcome(Enum):
    """How a run ended, besides failures."""

    STAGED = "the adapter is staged"


def is_trained(d: Draft) -> bool:
    """Whether an attempt staged an adapter."""
    return bool(d.status.attempts) and (d.status.attempts or [])[-1].reason == STAGED


def train(d: Draft) -> None:
    """Bring training one step further."""
    attempt = d.open_attempt()
    if attempt is None:
        between_attempts(d)
        return
    run = d.o.run(attempt.number)
    if run is None:
        _without_run(d, attempt)
        return
    take_notes(d, run)
    outcome = _outcome(d, run)
    if outcome is Outcome.STAGED:
        _close(d, STAGED, run.ended)
        d.set(retries=0, storage_unavailable_since=None)
        d.condition(ConditionType.RUNNING, False, ConditionReason.PUBLISHING)
    elif isinstance(outcome, Failure):
        _attempt_failed(d, outcome, run.ended)
        if d.status.phase is not Phase.FAILED:
            d.delete(run)
    elif d.spec.suspend:
        _close(d, ConditionReason.SUSPENDED.value)
        d.condition(ConditionType.RUNNING, False, ConditionReason.SUSPENDED)
        d.delete(run)
        suspend(d)
    else:
        _watch(d, run)


def _outcome(d: Draft, run: RayRun) -> Outcome | Failure | None:
    """How the run ended; None while it has not. Only jobStatus tells success."""
    if run.job_status == "SUCCEEDED":
        return Outcome.STAGED
    if run.deleting:
        return Failure(FailureReason.WORKERS_LOST, f"RayJob {run.name} was deleted by somebody else.")
    if run.managed_elsewhere:
        message = f"RayJob {run.name} was handed to {run.managed_elsewhere}, so its pods would run in another cluster."
        return Failure(FailureReason.POLICY_DENIED, message)
    if run.finished:
        return _end(d, run)
    limit = parse_duration(d.o.settings.patience.job_status)
    if run.deployment == "Running" and not run.job_status and run.head_ready and not run.suspended:
        end = run.head_ready + timedelta(seconds=limit)
        if d.o.now >= end:
            message = (
                f"KubeRay has had no word of the run from {run.name}'s head since {clock(run.head_ready)}: check that "
                "its operator may reach port 8265 of the job's pods."
            )
            return Failure(FailureReason.INTERNAL, message)
        d.look_again(end)
    return None


def _end(d: Draft, run: RayRun) -> Outcome | Failure:
    began = bool(run.log.progress) or d.o.status.phase is Phase.TRAINING
    if not is_false_failure(run, began=began):
        return run_failure(replace(run, pods=without_old_ends(d, run.pods)), seen_termination(d))
    if run.log.done is not None:
        return Outcome.STAGED
    message = f"KubeRay lost sight of {run.name} ({run.reason or run.message}); that is no failure of the run."
    return Failure(FailureReason.INTERNAL, message, counted=False)


def _without_run(d: Draft, attempt: Attempt) -> None:
    """The attempt has no RayJob: it is about to be made, or was deleted."""
    if attempt.start is not None:
        name = ray_job_name(d.o.job.name, attempt.number)
        _attempt_failed(d, Failure(FailureReason.WORKERS_LOST, f"RayJob {name} was deleted by somebody else."), None)
    elif d.spec.suspend:
        _close(d, ConditionReason.SUSPENDED.value)
        suspend(d)
    elif _may_start(d, attempt.number):
        _create(d, attempt.number)


def _attempt_failed(d: Draft, failure: Failure, ended: datetime | None) -> None:
    attempt = d.open_attempt()
    waits_for_store = failure.reason is FailureReason.STORAGE_UNAVAILABLE
    retries = d.status.retries or 0
    if attempt and attempt.checkpoint_step is not None:
        retries = 0
    elif failure.counted and not waits_for_store:
        retries += 1
    if final := give_up(d, failure, retries):
        d.set(retries=retries)
        d.fail(final)
        return
    if not waits_for_store:
        d.set(storage_unavailable_since=None)
    _close(d, failure.reason.value, ended, failure.node)
    d.set(retries=retries)
    if d.holds(ConditionType.RUNNING):
        d.condition(ConditionType.RUNNING, False, failure.reason)
    _back_off(d, failure.message)


def _close(d: Draft, reason: str, ended: datetime | None = None, node: str | None = None) -> None:
    """The newest attempt ends."""
    d.active(False, ended)
    if attempt := d.open_attempt():
        end = timestamp(min(ended or d.o.now, d.o.now))
        d.update(attempt, end=end, reason=reason, node=node or attempt.node)


def between_attempts(d: Draft) -> None:
    """No attempt is open: clear up, then wait for what holds the next one back, then begin it."""
    d.active(False)
    for run in d.o.runs:
        d.delete(run)
    if d.spec.suspend:
        suspend(d)
    elif d.status.attempts and _back_off(d, ""):
        return
    elif d.o.runs:
        names = ", ".join(run.name for run in d.o.runs)
        d.wait(Phase.QUEUED, ConditionReason.STARTING, f"The pods of {names} end before the next attempt starts.")
    elif d.o.lingering:
        names = ", ".join(d.o.lingering)
        message = f"Pods {names} end before the next attempt starts; if their node is gone, delete the Node."
        d.wait(Phase.QUEUED, ConditionReason.STARTING, message)
    else:
        _begin(d)


def _back_off(d: Draft, message: str) -> bool:
    """Whether the pause after a failed attempt lasts. `message`: why it just failed."""
    last = (d.status.attempts or [])[-1]
    if last.end is None or last.reason not in {reason.value for reason in FailureReason}:
        return False
    silent = last.reason == FailureReason.STORAGE_UNAVAILABLE.value
    ended = datetime.fromisoformat(last.end)
    due = ended + (storage_pause(d, ended) if silent else pause(failures_in_a_row(d.status.attempts or [])))
    if d.o.now >= due and not message:
        return False
    d.look_again(due)
    reason = FailureReason.STORAGE_UNAVAILABLE if silent else ConditionReason.BACKING_OFF
    if not message and (d.status.phase, d.status.reason) == (Phase.QUEUED, reason.value):
        return True
    told = message or f"Attempt {last.number} ended with {last.reason}" + (f" on node {last.node}" if last.node else "")
    number = last.number + 1
    d.wait(Phase.QUEUED, reason, f"{told.rstrip('.')}. Attempt {number} starts at {timestamp(max(due, d.o.now))}.")
    return True


def kept_back(d: Draft) -> bool:
    """Whether the job's owner wants nothing to happen after prepare."""
    if d.spec.suspend:
        suspend(d)
    elif d.spec.hold is Hold.BEFORE_TRAINING:
        d.wait(Phase.HELD, ConditionReason.HELD, "The plan is ready, and spec.hold is BeforeTraining.")
    else:
        return False
    return True


def _begin(d: Draft) -> None:
    """The next attempt, unless something keeps it."""
    if not d.status.attempts and kept_back(d):
        return
    number = (d.status.attempt or 0) + 1
    if _may_start(d, number):
        d.set(attempt=number, attempts=[*(d.status.attempts or []), Attempt(number=number)][-KEPT_ATTEMPTS:])
        _create(d, number)


def _may_start(d: Draft, number: int) -> bool:
    """Whether the cluster, the administrator and the names allow the attempt's RayJob now."""
    profile = d.spec.distribution.profile
    if not d.o.ray_installed:
        d.wait(Phase.QUEUED, FailureReason.KUBE_RAY_MISSING, "This cluster has no RayJobs (ray.io/v1).")
    elif profile not in d.o.settings.profiles:
        message = f"The administrator's settings have no profile {profile} any more. It goes on when they do."
        d.wait(Phase.QUEUED, FailureReason.POLICY_DENIED, message)
    else:
        return d.may_create("RayJob", ray_job_name(d.o.job.name, number), Phase.QUEUED)
    d.look_again(d.o.now + timedelta(minutes=1))
    return False


def _create(d: Draft, number: int) -> None:
    """The attempt is in status before its RayJob exists, so that its number is never used again."""
    d.wait(Phase.QUEUED, ConditionReason.STARTING, f"Attempt {number} is being started.")
    d.create(ray_job(d.o.job, d.spec, d.settings, number), Phase.QUEUED)


def _watch(d: Draft, run: RayRun) -> None:
    """While the RayJob lives: is it queued, starting or training?"""
    attempt = d.open_attempt()
    was_running, running = d.holds(ConditionType.RUNNING), is_running(run)
    workers = [pod for pod in run.of(Role.WORKER) if pod.node and not pod.deleting]
    d.active((running or len(workers) >= d.spec.distribution.workers) and not run.suspended)
    began = was_running or bool(attempt and attempt.restarts)
    evicted = (run.suspended and began) or bool(run.workload and run.workload.evicted)
    if run.workload:
        given = run.workload.reserved and not run.suspended
        lost = ConditionReason.EVICTED if evicted else ConditionReason.QUEUED
        d.condition(ConditionType.QUOTA_RESERVED, given, ConditionReason.ADMITTED if given else lost)
    if running:
        d.advance(Phase.TRAINING)
        d.condition(ConditionType.RUNNING, True, ConditionReason.TRAINING, _lost_workers(d, run))
        return
    if was_running and attempt:
        d.update(attempt, restarts=attempt.restarts + 1)
        d.condition(
            ConditionType.RUNNING, False, ConditionReason.EVICTED if run.suspended else FailureReason.WORKERS_LOST
        )
    if run.suspended or (run.workload and not run.workload.reserved):
        _in_queue(d, run, evicted=evicted)
        return
    stuck = obstacle(run.pods, run.notices)
    if stuck is None:
        ready = sum(pod.ready for pod in run.pods if pod.role is not Role.SUBMITTER)
        again = " again" if began else ""
        message = (
            f"Attempt {run.attempt} starts{again}: {ready} of {d.spec.distribution.workers + 1} Ray pods are ready."
        )
        d.wait(Phase.QUEUED, ConditionReason.STARTING, message)
        look_for_events(d, run.created)
    elif not d.wait_for(Phase.QUEUED, stuck.reason, stuck.message):
        _attempt_failed(d, Failure(FailureReason(stuck.reason), stuck.message), None)
        if d.status.phase is not Phase.FAILED:
            d.delete(run)


def _lost_workers(d: Draft, run: RayRun) -> str:
    """What to know while this run's steps are made by fewer workers than there should be."""
    made, where = run.log.progress, d.spec.distribution
    if made is None or made.workers is None or made.workers >= where.workers:
        return ""
    return (
        f"Steps are made by {made.workers} of {where.workers} workers, and distribution.minWorkers is "
        f"{where.min_workers}; lost ones take part again some minutes after they are back."
    )


def is_running(run: RayRun) -> bool:
    """Whether steps can be made: Ray runs the driver, and its head is there."""
    there = any(pod.phase == "Running" and not pod.deleting for pod in run.of(Role.HEAD))
    return run.job_status == "RUNNING" and not run.suspended and there


def _in_queue(d: Draft, run: RayRun, *, evicted: bool) -> None:
    job, distribution = d.o.job, d.spec.distribution
    gpus = distribution.workers * distribution.gpus_per_worker
    profile = d.o.settings.profiles.get(distribution.profile)
    what = f"{gpus} {profile.gpu_resource if profile else 'GPUs'}" if gpus else f"{distribution.workers} workers"
    queue = f"queue {job.labels[QUEUE_LABEL]}" if QUEUE_LABEL in job.labels else "quota"
    since = run.workload.since if run.workload else run.created
    words = f": {run.workload.message}" if run.workload and run.workload.message else ""
    reason = ConditionReason.EVICTED if evicted else ConditionReason.QUEUED
    d.wait(Phase.QUEUED, reason, f"Waiting for {what} in {queue} since {clock(since)}{words}")
