"""`cloister verify`: is a published adapter what its manifest says?"""

from __future__ import annotations

import argparse

from cloister_api.exit_codes import ExitCode
from cloister_trainer.cli.local import local_storage
from cloister_trainer.reporter import Reporter

MISMATCH = 1


def execute(options: argparse.Namespace, reporter: Reporter) -> int:
    """Print one page (or JSON); exit code 1 on any mismatch."""
    from cloister_trainer.publish.verify import to_json, verify_adapter
    from cloister_trainer.publish.verify_page import render_page

    report = verify_adapter(local_storage(), options.uri, options.key)
    reporter.result(to_json(report) if options.json else render_page(report))
    return ExitCode.DONE if report.ok else MISMATCH
