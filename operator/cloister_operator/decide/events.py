"""Kubernetes Events of a job: one where its phase or reason changed."""

from __future__ import annotations

from cloister_api.reasons import FailureReason
from cloister_api.status import FineTuneJobStatus, Phase
from cloister_operator.decide.actions import Event


def events_between(old: FineTuneJobStatus, new: FineTuneJobStatus) -> tuple[Event, ...]:
    """An Event where phase or reason changed."""
    if (old.phase, old.reason) == (new.phase, new.reason) or new.phase is None:
        return ()
    reason = new.reason or new.phase.value
    warns = reason in FailureReason._value2member_map_
    return (Event("Warning" if warns else "Normal", reason, (new.message or ADVANCES[new.phase])[:1000]),)


ADVANCES: dict[Phase, str] = {
    Phase.PENDING: "The job is accepted.",
    Phase.SUSPENDED: "The job is suspended.",
    Phase.HELD: "The plan is ready.",
    Phase.PREPARING: "The inputs are being checked and tokenised.",
    Phase.QUEUED: "The run waits for its place.",
    Phase.TRAINING: "Steps are being made.",
    Phase.PUBLISHING: "The adapter is being verified and published.",
    Phase.COMPLETE: "The adapter is published.",
    Phase.FAILED: "The job ended without an adapter.",
}
"""What an Event says of a phase that needs no explanation."""
