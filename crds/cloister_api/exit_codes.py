"""Exit codes of the trainer's entry points and of the `cloister` command."""

from enum import IntEnum

from cloister_api.reasons import FailureReason


class ExitCode(IntEnum):
    """What a step's end means to whoever started it."""

    DONE = 0
    USAGE = 2
    REFUSED = 10
    FAILED = 11
    RETRYABLE = 12
    INTERRUPTED = 130


def exit_code_for(reason: FailureReason, *, data_was_read: bool = False) -> ExitCode:
    """The exit code that a failure with this reason ends with.

    With `data_was_read`, credentials that are refused now were accepted before in this run: keys rotate, so trying
    again can help.
    """
    if reason == FailureReason.STORAGE_ACCESS_DENIED and data_was_read:
        return ExitCode.RETRYABLE
    if reason.facts.refusal:
        return ExitCode.REFUSED
    return ExitCode.RETRYABLE if reason.facts.retryable else ExitCode.FAILED
