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
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class _Event(ApiModel):
    model_config = ConfigDict(allow_inf_nan=False)


class Progress(_Event):
    """A step was made."""

    event: Literal["progress"] = "progress"
    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    tokens_per_second: float
    """Processed tokens (prompts, labels and padding left out of neither) per second over all workers."""
    eta_seconds: int


class EvaluationDone(_Event):
    """The validation examples were measured."""

    event: Literal["evaluation"] = "evaluation"
    step: int
    loss: float
    base_loss: float


class CheckpointSaved(_Event):
    """A checkpoint is complete in the store."""

    event: Literal["checkpoint"] = "checkpoint"
    step: int
    uri: str


class Restarted(_Event):
    """The worker group starts again inside the attempt."""

    event: Literal["restart"] = "restart"
    workers: int
    reason: str


class FailureSeen(_Event):
    """The attempt ends without success."""

    event: Literal["failure"] = "failure"
    reason: FailureReason
    message: str
    step: int
    node: str


class Done(_Event):
    """The adapter is staged for publish."""

    event: Literal["done"] = "done"
    step: int
    staged_uri: str


Event = Progress | EvaluationDone | CheckpointSaved | Restarted | FailureSeen | Done
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def format_event(uid: str, attempt: int, time: datetime, event: Event) -> str:
    """One line of at most MAX_BYTES bytes, without control characters and without a newline."""
    body = {key: _clean(value) for key, value in event.to_api().items()}
    head: dict[str, Any] = {MARK: f"{uid}/{attempt}", "time": time.isoformat(timespec="milliseconds")}
    line = _compact({**head, **body})
    while len(line.encode()) > MAX_BYTES:
        longest = max((key for key in body if isinstance(body[key], str)), key=lambda key: len(body[key]))
        surplus = len(line.encode()) - MAX_BYTES
        body[longest] = body[longest][: max(0, len(body[longest]) - max(1, surplus // 4))]
        line = _compact({**head, **body})
    return line


def parse_event(line: str, uid: str, attempt: int) -> Event | None:
    """The event in a log line of this run's attempt, or None for anything else."""
    if len(line.encode()) > MAX_BYTES or not line.startswith('{"' + MARK + '":"' + f"{uid}/{attempt}" + '",'):
        return None
    try:
        fields = json.loads(line)
        datetime.fromisoformat(fields.pop("time"))
        fields.pop(MARK)
        return _EVENT.validate_python(fields)
    except (ValueError, KeyError, TypeError, ValidationError):
        return None


def _clean(value: Any) -> Any:
    return _CONTROL.sub(" ", value) if isinstance(value, str) else value


def _compact(fields: dict[str, Any]) -> str:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
