"""The command line: arguments in, exit code out."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from pathlib import Path

from cloister_api.errors import CloisterError
from cloister_api.exit_codes import ExitCode, exit_code_for
from cloister_api.reasons import FailureReason
from cloister_trainer.interrupt import Interrupted, how_to_go_on
from cloister_trainer.reporter import Reporter, quiet_libraries

TRACE_ENVIRONMENT = "CLOISTER_TRACE"


def build_parser() -> argparse.ArgumentParser:
    """All subcommands; each is a module of this package with `execute(options, reporter)`."""
    parser = argparse.ArgumentParser(
        prog="cloister", description="Fine-tune open-weight language models where the data is."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="prepare, train and publish on this machine")
    run.add_argument("job", type=Path, metavar="JOB.yaml", help="a FineTuneJob, the same as a cluster takes")
    run.add_argument("--fresh", action="store_true", help="discard what an earlier run with the same inputs left")
    run.add_argument("--signing-key", type=Path, metavar="PEM", help="sign the adapter with this private key")

    validate = commands.add_parser("validate", help="check manifests without any network")
    validate.add_argument("jobs", type=Path, nargs="+", metavar="JOB.yaml", help="files with FineTuneJobs")

    preview = commands.add_parser("preview", help="show rows as the model sees them, trained tokens in colour")
    preview.add_argument("job", type=Path, metavar="JOB.yaml", help="a FineTuneJob")
    preview.add_argument("--rows", type=positive, default=3, metavar="N", help="how many rows (default: 3)")

    plan = commands.add_parser("plan", help="show prepare's checks, the memory plan and what-ifs; writes nothing")
    plan.add_argument("job", type=Path, metavar="JOB.yaml", help="a FineTuneJob")
    plan.add_argument("--signing-key", type=Path, metavar="PEM", help="check that run could sign with this private key")

    verify = commands.add_parser("verify", help="recompute a published adapter's digests and check its signature")
    verify.add_argument("uri", metavar="URI", help="output.uri, or an immutable folder under it")
    verify.add_argument("--key", type=Path, metavar="PEM", help="the public key of the signature")
    verify.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def positive(text: str) -> int:
    """A whole number of at least 1, as argparse asks for it."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a whole number of at least 1")
    return number


def main(arguments: list[str] | None = None) -> int:
    """Run one command; errors become a sentence and an exit code, never a trace."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    reporter = Reporter()
    quiet_libraries()
    command = importlib.import_module(f"cloister_trainer.cli.{options.command}")
    try:
        return int(command.execute(options, reporter))
    except CloisterError as error:
        reporter.fail(error.reason, error.message)
        return exit_code_for(error.reason)
    except Interrupted as interrupted:
        reporter.say(interrupted.sentence(fresh=options.fresh))
        return ExitCode.INTERRUPTED
    except KeyboardInterrupt:
        kept = f" What is done is kept; {how_to_go_on(fresh=options.fresh)}" if options.command == "run" else ""
        reporter.say(f"Interrupted.{kept}")
        return ExitCode.INTERRUPTED
    except Exception as error:
        if os.environ.get(TRACE_ENVIRONMENT):
            raise
        sentence = f"An unexpected {type(error).__name__}. Set {TRACE_ENVIRONMENT}=1 to see its trace."
        reporter.fail(FailureReason.INTERNAL, sentence)
        return exit_code_for(FailureReason.INTERNAL)


if __name__ == "__main__":
    sys.exit(main())
