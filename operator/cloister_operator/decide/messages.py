"""Sentences of status.message: why a job waits or failed, and the next step."""

from __future__ import annotations

from datetime import UTC, datetime

from cloister_api.reasons import ConditionReason, FailureReason

MAX_MESSAGE = 2500
"""Characters of a message before the next step: status holds 4,096."""

NEXT_STEPS: dict[ConditionReason, str] = {
    ConditionReason.PREPARING: "Nothing to do.",
    ConditionReason.QUEUED: "It starts by itself when its queue has quota; ask for fewer workers to start earlier.",
    ConditionReason.CPU_QUOTA: "It starts by itself when the administrator's queue has quota.",
    ConditionReason.UNSCHEDULABLE: "It starts by itself when nodes are free; check nodeSelector, tolerations and the "
    "profile if there should be some.",
    ConditionReason.STARTING: "Nothing to do.",
    ConditionReason.BACKING_OFF: "Nothing to do; set spec.suspend to stop.",
    ConditionReason.EVICTED: "Nothing to do; the run goes on from its newest checkpoint when there is room again.",
    ConditionReason.SUSPENDED: "Set spec.suspend to false to go on.",
    ConditionReason.HELD: "Look at status.plan, then remove spec.hold to train.",
}
"""What to do while a job waits, by what it waits for."""


def with_next_step(message: str, reason: FailureReason | ConditionReason) -> str:
    """`message`, ending with what to do."""
    action = reason.facts.action if isinstance(reason, FailureReason) else NEXT_STEPS[reason]
    told = _sentence(message[:MAX_MESSAGE])
    return told if action in told else f"{told} {action}".strip()


def _sentence(text: str) -> str:
    text = text.rstrip()
    return text if not text or text[-1] in ".!?…" else text + "."


def timestamp(moment: datetime) -> str:
    """A time as Kubernetes writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def clock(moment: datetime) -> str:
    """A time as a message names it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def seconds_between(start: str, end: datetime) -> int:
    """Whole seconds from a time in status to `end`, never negative."""
    return max(0, int((end - datetime.fromisoformat(start)).total_seconds()))
