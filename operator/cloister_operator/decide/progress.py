"""What a run tells while it trains, written into status. It may lag and be lossy; it never tells success."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from cloister_api.reasons import FailureReason
from cloister_api.status import Attempt, CheckpointStatus, ProgressStatus
from cloister_api.units import format_duration
from cloister_operator.decide.draft import Draft
from cloister_operator.decide.evidence import Failure, pod_failure
from cloister_operator.decide.messages import timestamp
from cloister_operator.decide.results import Trained
from cloister_operator.observe.facts import Container, Pod, RayRun

NOTED = frozenset({FailureReason.OUT_OF_MEMORY, FailureReason.LOCAL_DISK_FULL, FailureReason.NODE_LOST})
"""Terminations that are noted when seen: KubeRay deletes the pod within a second."""


LOSS_DIGITS = 4
OVERCOME = timedelta(minutes=5)
"""A step so long after a container's end, seen a little late itself, was made without it."""


def take_notes(d: Draft, run: RayRun) -> None:
    """Start, checkpoint, progress and terminations of the open attempt."""
    attempt = d.open_attempt()
    if attempt is None:
        return
    if attempt.start is None:
        d.update(attempt, start=timestamp(run.created))
    if run.cluster_uid:
        d.update(attempt, cluster_uid=run.cluster_uid)
    _note_checkpoint(d, run)
    before = d.status.progress
    _note_progress(d, run)
    found = pod_failure(without_old_ends(d, run.pods))
    newest = d.open_attempt()
    if newest and found and found.reason in NOTED:
        d.update(newest, reason=found.reason.value, node=found.node)
    elif newest and newest.reason and d.status.progress != before:  # it got over it
        d.update(newest, reason=None, node=None)


def without_old_ends(d: Draft, pods: Sequence[Pod]) -> tuple[Pod, ...]:
    """The pods without what containers ended of long before the newest step: the run got over that."""
    if d.status.progress is None:
        return tuple(pods)
    since = datetime.fromisoformat(d.status.progress.updated_at) - OVERCOME
    return tuple(
        replace(pod, containers=tuple(_without_old_end(each, since) for each in pod.containers)) for pod in pods
    )


def _without_old_end(container: Container, since: datetime) -> Container:
    if container.ended_at is None or container.ended_at >= since:
        return container
    return replace(container, ended="", exit_code=None, message=None)


def seen_termination(d: Draft) -> Failure | None:
    """The termination that was noted in the open attempt."""
    attempt: Attempt | None = d.open_attempt()
    if attempt is None or attempt.reason not in {reason.value for reason in NOTED}:
        return None
    reason = FailureReason(attempt.reason)
    at = f" (node {attempt.node})" if attempt.node else ""
    return Failure(reason, f"{reason.facts.meaning.rstrip('.')}{at}.", node=attempt.node)


def note_end(d: Draft, end: Trained) -> None:
    """The last step, as the published adapter's checks have it: the log's last lines may never have been read.

    A run of which no step was read shows none.
    """
    if d.status.progress is None:
        return
    percent = _percent(end.step, end.total_steps)
    d.set(
        progress=d.status.progress.model_copy(
            update={
                "step": end.step,
                "total_steps": end.total_steps,
                "percent": percent,
                "summary": f"{percent}%",
                "loss": round(end.loss, LOSS_DIGITS),
                "eta": format_duration(0),
            }
        )
    )


def _percent(step: int, total_steps: int) -> int:
    return min(100, step * 100 // max(1, total_steps))


def _note_checkpoint(d: Draft, run: RayRun) -> None:
    """A checkpoint newer than all before it: only such a one makes an attempt count as useful."""
    saved, known, attempt = run.log.checkpoint, d.status.checkpoint, d.open_attempt()
    if saved is None or attempt is None or (known is not None and saved.step <= known.step):
        return
    d.set(
        checkpoint=CheckpointStatus(step=saved.step, uri=saved.uri, time=timestamp(d.o.now)),
        storage_unavailable_since=None,
    )
    d.update(attempt, checkpoint_step=saved.step)


def _note_progress(d: Draft, run: RayRun) -> None:
    made, measured, known = run.log.progress, run.log.evaluation, d.status.progress
    if made is None:
        return
    validation_loss = round(measured.loss, LOSS_DIGITS) if measured else known.validation_loss if known else None
    if known and (known.step, known.validation_loss, known.workers) == (made.step, validation_loss, made.workers):
        return
    if known is None or made.step > known.step:
        d.set(storage_unavailable_since=None)
    percent = _percent(made.step, made.total_steps)
    d.set(
        progress=ProgressStatus(
            step=made.step,
            total_steps=made.total_steps,
            percent=percent,
            summary=f"{percent}%",
            epoch=made.epoch,
            loss=round(made.loss, LOSS_DIGITS),
            validation_loss=validation_loss,
            learning_rate=made.learning_rate,
            tokens_per_second=made.tokens_per_second,
            eta=format_duration(made.eta_seconds),
            workers=made.workers,
            updated_at=timestamp(d.o.now),
        )
    )
