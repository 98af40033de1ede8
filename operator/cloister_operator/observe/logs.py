"""The events in a submitter's log. Whatever else stands there, however it looks, is text."""

from __future__ import annotations

from typing import TypeVar

from cloister_api.events import CheckpointSaved, Done, EvaluationDone, Event, FailureSeen, Progress, parse_event
from cloister_operator.observe.facts import LogSummary

Kind = TypeVar("Kind", bound=Event)


def summarise_log(log: str, uid: str, attempt: int) -> LogSummary:
    """The newest event of each kind; failure and done count only as the log's last event.

    Event lines are the driver's alone: workers' lines carry Ray's prefix, and no row of data is ever printed.
    """
    events = [event for line in log.split("\n") if (event := parse_event(line.rstrip("\r"), uid, attempt))]
    last = events[-1] if events else None
    return LogSummary(
        progress=_newest(events, Progress),
        evaluation=_newest(events, EvaluationDone),
        checkpoint=_newest(events, CheckpointSaved),
        failure=last if isinstance(last, FailureSeen) else None,
        done=last if isinstance(last, Done) else None,
    )


def _newest(events: list[Event], kind: type[Kind]) -> Kind | None:
    return next((event for event in reversed(events) if isinstance(event, kind)), None)
