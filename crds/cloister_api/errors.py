"""The one exception that carries a reason and a sentence for whoever can fix it."""

from __future__ import annotations

from typing import Any

from cloister_api.reasons import FailureReason


class CloisterError(Exception):
    """A failure with a reason.

    The message is one or more whole sentences: what was found, where, what was expected, what to do. It never holds a
    credential or the content of a row. `result` is what a step found before it failed, by the step's own fields.
    """

    def __init__(
        self,
        reason: FailureReason,
        message: str,
        *,
        step: int | None = None,
        node: str | None = None,
        result: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.step = step
        self.node = node
        self.result = result

    def __reduce__(self) -> tuple[object, ...]:
        return (_restore, (self.reason.value, self.message, self.step, self.node, self.result))


def _restore(
    reason: str, message: str, step: int | None, node: str | None, result: dict[str, Any] | None
) -> CloisterError:
    return CloisterError(FailureReason(reason), message, step=step, node=node, result=result)
