"""`python -m cloister_trainer {prepare,train,publish} --run PATH`: one step, as a pod runs it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from cloister_api.errors import CloisterError
from cloister_api.exit_codes import ExitCode, exit_code_for
from cloister_api.reasons import FailureReason
from cloister_api.run import Run
from cloister_api.termination import Outcome, TerminationMessage
from cloister_trainer.interrupt import Interrupted, how_to_go_on
from cloister_trainer.reporter import Reporter, quiet_libraries
from cloister_trainer.steps import STEPS, StepContext, check_step

TERMINATION_LOG_ENVIRONMENT = "CLOISTER_TERMINATION_LOG"
TERMINATION_LOG = "/dev/termination-log"
log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Run one step and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m cloister_trainer", description=__doc__)
    parser.add_argument("step", choices=sorted(STEPS), help="the step to run")
    parser.add_argument("--run", required=True, type=Path, metavar="PATH", help="the run file, run.json")
    parser.add_argument("--check", action="store_true", help="with publish: check output and key, write no adapter")
    options = parser.parse_args(arguments)
    reporter = Reporter()
    quiet_libraries()
    try:
        run = Run.model_validate_json(options.run.read_bytes())
    except (OSError, ValidationError) as error:
        reporter.say(f"The run file {options.run} cannot be used: {what_is_wrong(error)}")
        return ExitCode.USAGE
    step = check_step if options.step == "publish" and options.check else STEPS[options.step]
    try:
        message = TerminationMessage(outcome=Outcome.SUCCEEDED, result=step(StepContext.of(run, reporter, environ)))
    except Interrupted as interrupted:
        reporter.say(interrupted.sentence())
        return ExitCode.INTERRUPTED
    except KeyboardInterrupt:
        reporter.say(f"Interrupted. What is done is kept; {how_to_go_on()}")
        return ExitCode.INTERRUPTED
    except CloisterError as error:
        message = failure_message(error)
    except Exception as error:
        log.exception("unexpected error")
        message = failure_message(unexpected(error))
    if message.reason is not None:
        reporter.say(f"{message.reason}: {message.message}")
    write_termination_message(message, environ)
    if message.reason is None:
        return ExitCode.DONE
    return exit_code_for(message.reason, data_was_read=options.step != "prepare" and not options.check)


def what_is_wrong(error: OSError | ValidationError) -> str:
    """The first problem of a run file, without what was found there."""
    if isinstance(error, OSError):
        return f"{error.strerror}."
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"])) or "the whole file"
    return f"{where}: {first['msg']}. Expected what the operator or `cloister run` wrote as run.json."


def failure_message(error: CloisterError) -> TerminationMessage:
    """How a step's failure reaches the operator."""
    outcome = Outcome.REFUSED if error.reason.facts.refusal else Outcome.FAILED
    return TerminationMessage(outcome=outcome, reason=error.reason, message=error.message, result=error.result)


def unexpected(error: Exception) -> CloisterError:
    """A sentence for an error that nobody foresaw; its text may hold anything, so only its type is named."""
    return CloisterError(
        FailureReason.INTERNAL,
        f"An unexpected {type(error).__name__} ended the step. The log has its trace; please report it.",
    )


def write_termination_message(message: TerminationMessage, environ: Mapping[str, str]) -> None:
    """Leave the message where the kubelet reads it, when there is such a place."""
    path = Path(environ.get(TERMINATION_LOG_ENVIRONMENT, TERMINATION_LOG))
    if path.exists() or TERMINATION_LOG_ENVIRONMENT in environ:
        path.write_text(message.encode())


if __name__ == "__main__":
    sys.exit(main())
