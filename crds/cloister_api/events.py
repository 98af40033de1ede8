"""Event lines: what the driver says on standard output while it trains."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from cloister_api.base import ApiModel
from cloister_api.reasons import FailureReason

MAX_BYTES = 2048
MARK = "cloister"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

Count = Annotated[int, Field(ge=0, le=10**15)]
Uri = Annotated[str, Field(max_length=1280)]
Name = Annotated[str, Field(max_length=253)]


class _Event(ApiModel):
    model_config = ConfigDict(allow_inf_nan=False)


class Progress(_Event):
    """A step was made."""

    event: Literal["progress"] = "progress"
    step: Count
    total_steps: Count
    epoch: float
    loss: float
    learning_rate: float
    tokens_per_second: float
    """Processed tokens per second over all workers: prompts and labels, padding not counted."""
    eta_seconds: Count
    workers: Count | None = None
    """Workers that made the step, where those are fewer than distribution.workers. Absent: all did."""


class EvaluationDone(_Event):
    """The validation examples were measured."""

    event: Literal["evaluation"] = "evaluation"
    step: Count
    loss: float
    base_loss: float


class CheckpointSaved(_Event):
    """A checkpoint is complete in the store."""

    event: Literal["checkpoint"] = "checkpoint"
    step: Count
    uri: Uri


class Restarted(_Event):
    """The worker group starts again inside the attempt."""

    event: Literal["restart"] = "restart"
    workers: Count
    """Workers that it starts with."""
    reason: str
    """Why: the failure's reason, or WorkersBack."""


class FailureSeen(_Event):
    """The attempt ends without success."""

    event: Literal["failure"] = "failure"
    reason: FailureReason
    message: str
    step: Count
    node: Name


class Done(_Event):
    """The adapter is staged for publish."""

    event: Literal["done"] = "done"
    step: Count
    staged_uri: Uri


Event = Progress | EvaluationDone | CheckpointSaved | Restarted | FailureSeen | Done
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def format_event(uid: str, attempt: int, time: datetime, event: Event) -> str:
    """One line of at most MAX_BYTES bytes, without control characters and without a newline; `time` has a time zone.

    What is too long is cut, the longest text first.
    """
    head = {MARK: f"{uid}/{attempt}", "time": time.isoformat(timespec="milliseconds")}
    body = {key: _clean(value) for key, value in event.to_api().items()}
    line = _compact({**head, **body})
    while (surplus := len(line.encode()) - MAX_BYTES) > 0:
        longest = max((key for key in body if isinstance(body[key], str)), key=lambda key: len(body[key]))
        body[longest] = body[longest][: -max(1, surplus // 4)]
        line = _compact({**head, **body})
    return line


def parse_event(line: str, uid: str, attempt: int) -> Event | None:
    """The event in a log line of this run's attempt, or None for anything else.

    Strict: our mark first, known fields only, each once and of its own type, a time with a zone, finite numbers.
    """
    if len(line) > MAX_BYTES or not line.startswith(f'{{"{MARK}":"{uid}/{attempt}","time":"'):
        return None
    try:
        if len(line.encode()) > MAX_BYTES:
            return None
        fields = json.loads(line, object_pairs_hook=_each_once)
        del fields[MARK]
        if datetime.fromisoformat(fields.pop("time")).tzinfo is None:
            return None
        return _EVENT.validate_json(json.dumps(fields), strict=True, by_alias=True, by_name=False)
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError):
        return None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field is given twice")
    return fields


def _clean(value: Any) -> Any:
    """Text without control characters and halves of surrogate pairs, no longer than a line can be."""
    return _CONTROL.sub(" ", value[:MAX_BYTES]) if isinstance(value, str) else value


def _compact(fields: dict[str, Any]) -> str:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
