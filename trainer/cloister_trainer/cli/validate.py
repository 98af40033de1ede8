"""`cloister validate`: manifests checked without any network."""

from __future__ import annotations

import argparse

from cloister_api.errors import CloisterError
from cloister_api.exit_codes import ExitCode
from cloister_api.loading import load_jobs
from cloister_trainer.reporter import Reporter


def execute(options: argparse.Namespace, reporter: Reporter) -> int:
    """Check every file; one line for each job, and every problem of a file that has some."""
    refused = False
    for path in options.jobs:
        try:
            for job in load_jobs(path):
                reporter.result(f"{path}: FineTuneJob {job.metadata.name} is valid.")
        except CloisterError as error:
            refused = True
            reporter.fail(error.reason, error.message)
    return ExitCode.REFUSED if refused else ExitCode.DONE
