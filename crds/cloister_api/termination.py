"""The termination message of prepare and publish: how a step's result reaches the operator."""

from __future__ import annotations

from typing import Any, Literal

from cloister_api.base import ApiEnum, ApiModel
from cloister_api.reasons import FailureReason

MAX_BYTES = 3000
"""The kubelet keeps the last 4,096 bytes: a longer JSON would lose its head."""


class Outcome(ApiEnum):
    """How a step ended."""

    SUCCEEDED = "Succeeded"
    REFUSED = "Refused"
    FAILED = "Failed"


class TerminationMessage(ApiModel):
    """What a step leaves in /dev/termination-log."""

    version: Literal[1] = 1
    outcome: Outcome
    reason: FailureReason | None = None
    message: str = ""
    result: dict[str, Any] | None = None

    def encode(self) -> str:
        """JSON of at most MAX_BYTES bytes; the sentence is cut first, then the result is left out."""
        text = self.model_dump_json(by_alias=True, exclude_none=True)
        if len(text.encode()) <= MAX_BYTES:
            return text
        result = self.result if len(_dump(self, "", self.result)) <= MAX_BYTES else None
        kept, low, high = "", 0, len(self.message)
        while low <= high:
            middle = (low + high) // 2
            cut = self.message[:middle] + ("…" if middle < len(self.message) else "")
            if len(_dump(self, cut, result)) <= MAX_BYTES:
                kept, low = cut, middle + 1
            else:
                high = middle - 1
        return _dump(self, kept, result).decode()


def _dump(source: TerminationMessage, message: str, result: dict[str, Any] | None) -> bytes:
    cut = source.model_copy(update={"message": message, "result": result})
    return cut.model_dump_json(by_alias=True, exclude_none=True).encode()
