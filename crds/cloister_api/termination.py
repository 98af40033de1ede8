"""The termination message of prepare and publish: how a step's result reaches the operator."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Literal

from pydantic import ValidationError

from cloister_api.base import ApiEnum, ApiModel
from cloister_api.reasons import FailureReason

MAX_BYTES = 3000
"""The kubelet keeps the last 4,096 bytes: a longer JSON would lose its head."""

_UNWRITABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Outcome(ApiEnum):
    """How a step ended."""

    SUCCEEDED = "Succeeded"
    REFUSED = "Refused"
    FAILED = "Failed"


class TerminationMessage(ApiModel):
    """What a step leaves in /dev/termination-log."""

    version: Literal[1] = 1
    """Version of this form."""
    outcome: Outcome
    """How the step ended."""
    reason: FailureReason | None = None
    """Why it did not succeed. Absent: it did."""
    message: str = ""
    """Why, as sentences with what to do."""
    result: dict[str, Any] | None = None
    """What the step found, by the step's own fields."""

    def encode(self) -> str:
        """JSON of at most MAX_BYTES bytes.

        What is too long is cut in this order: the message, to no less than 500 characters; lists in the result, from
        their ends; the message, to nothing. A result that does not fit even so is left out.
        """
        fields: dict[str, Any] = _writable(self.to_api())
        result = fields.get("result", {})
        _cut_message(fields, keep=500)
        while _surplus(fields) > 0 and (longest := max(_lists(result), key=len, default=None)):
            del longest[-max(1, len(longest) // 8) :]
        if _surplus({**fields, "message": ""}) > 0:
            del fields["result"]
        _cut_message(fields, keep=0)
        return _compact(fields)


def parse_termination(text: str) -> TerminationMessage | None:
    """The message in a container's termination log, or None for anything else."""
    try:
        return TerminationMessage.model_validate_json(text, strict=True, by_alias=True, by_name=False)
    except (ValidationError, UnicodeEncodeError):
        return None


def _cut_message(fields: dict[str, Any], keep: int) -> None:
    """Shorten the message by as much as is needed, ending it with an ellipsis, to no less than `keep` characters."""
    while (surplus := _surplus(fields)) > 0 and len(fields["message"]) > keep:
        length = max(keep, len(fields["message"]) - 1 - max(1, surplus // 6))
        fields["message"] = fields["message"][:length].rstrip("…") + ("…" if length else "")
        if length == keep:
            return


def _lists(value: Any) -> list[list[Any]]:
    """All lists in a JSON value that have entries."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    own = [value] if isinstance(value, list) and value else []
    return own + [found for part in inner for found in _lists(part)]


def _writable(value: Any) -> Any:
    """A copy of a JSON value with spaces for control characters and halves of surrogate pairs, and null for NaN."""
    if isinstance(value, str):
        return _UNWRITABLE.sub(" ", value)
    if isinstance(value, list):
        return [_writable(part) for part in value]
    if isinstance(value, dict):
        return {_UNWRITABLE.sub(" ", key): _writable(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _surplus(fields: dict[str, Any]) -> int:
    return len(_compact(fields).encode()) - MAX_BYTES


def _compact(fields: dict[str, Any]) -> str:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
