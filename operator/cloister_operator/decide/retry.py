"""When to try again: after how long, how often, and what uses up a retry."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from cloister_api.reasons import FailureReason
from cloister_api.status import Attempt, ConditionType
from cloister_api.units import parse_duration
from cloister_operator.decide.draft import Draft
from cloister_operator.decide.evidence import Failure, retryable
from cloister_operator.decide.messages import clock, seconds_between, timestamp

FIRST_PAUSE = timedelta(seconds=10)
LONGEST_PAUSE = timedelta(minutes=10)
_FAILURES = frozenset(reason.value for reason in FailureReason)


def pause(failures: int) -> timedelta:
    """The pause after so many failures in a row: 10 s, 20 s, 40 s, … 10 min."""
    doublings = min(max(failures - 1, 0), 10)
    return min(FIRST_PAUSE * int(2**doublings), LONGEST_PAUSE)


def storage_pause(d: Draft, ended: datetime) -> timedelta:
    """The pause after an end at which the store was silent: as long as it was silent by then, so no counter is kept."""
    silent = timedelta(seconds=seconds_between(d.status.storage_unavailable_since or timestamp(ended), ended))
    return min(max(silent, FIRST_PAUSE * 3), LONGEST_PAUSE)


def failures_in_a_row(attempts: Sequence[Attempt]) -> int:
    """Newest attempts that failed without a newer checkpoint, uncounted ones included."""
    count = 0
    for attempt in reversed(attempts):
        if attempt.reason not in _FAILURES or attempt.checkpoint_step is not None:
            break
        count += 1
    return count


def give_up(d: Draft, failure: Failure, retries: int) -> Failure | None:
    """The failure that ends the job, or None where trying again may help. `retries`: with this one."""
    if failure.reason is FailureReason.STORAGE_UNAVAILABLE:
        return _store_given_up(d, failure)
    if not retryable(failure.reason, data_was_read=d.holds(ConditionType.PREPARED)):
        return failure
    if retries > d.spec.backoff_limit:
        times = f"It failed {retries} times in a row without a newer checkpoint" if retries > 1 else "It failed"
        message = f"{failure.message} {times}, and spec.backoffLimit is {d.spec.backoff_limit}."
        return Failure(failure.reason, message, failure.step, failure.node)
    return None


def _store_given_up(d: Draft, failure: Failure) -> Failure | None:
    if d.status.storage_unavailable_since is None:
        d.set(storage_unavailable_since=timestamp(d.o.now))
    since = d.status.storage_unavailable_since or timestamp(d.o.now)
    if seconds_between(since, d.o.now) < parse_duration(d.o.settings.patience.storage):
        return None
    message = f"{failure.message} It has not answered since {clock(datetime.fromisoformat(since))}."
    return Failure(failure.reason, message, failure.step, failure.node)
