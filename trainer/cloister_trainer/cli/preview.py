"""`cloister preview`: rows as the model sees them, trained tokens in colour."""

from __future__ import annotations

import argparse

from rich.text import Text

from cloister_api.exit_codes import ExitCode
from cloister_api.text import printable
from cloister_trainer.cli.local import load_one_job, local_run, local_storage
from cloister_trainer.reporter import LAYOUT, Reporter
from cloister_trainer.workspace import Workspace

TRAINED_STYLE = "black on green"


def execute(options: argparse.Namespace, reporter: Reporter) -> int:
    """Print the template's name, the stop token and a few rows; nothing is written to the store."""
    from cloister_trainer.prepare.main import inspect
    from cloister_trainer.prepare.preview import preview

    job = load_one_job(options.job)
    storage = local_storage()
    run = local_run(job, job.spec, storage)
    inspected = inspect(run, storage, reporter, Workspace.of_environment())
    shown = preview(run, storage, inspected.folder, inspected.record.position_limit, options.rows)
    reporter.result(f"Format: {shown.format}")
    reporter.result(f"Chat template: {shown.template}")
    reporter.result(f"Stop token: {shown.stop_token or 'none'}")
    reporter.result("Trained tokens are in colour." if reporter.output.is_terminal else "Trained tokens are in [[ ]].")
    for number, row in enumerate(shown.rows, start=1):
        trained = sum(row.trained)
        reporter.result(f"\nRow {number}: {len(row.trained)} tokens, {trained} of them trained")
        reporter.output.print(drawn(row.pieces, in_colour=reporter.output.is_terminal), soft_wrap=True)
        for note in row.notes:
            reporter.result(note)
    return ExitCode.DONE


def drawn(pieces: list[tuple[str, bool]], *, in_colour: bool) -> Text:
    """Pieces of text, the trained ones in colour, or in brackets where there is none; without rows' escape codes."""
    text = Text()
    for raw, trained in pieces:
        piece = printable(raw, LAYOUT)
        if in_colour:
            text.append(piece, style=TRAINED_STYLE if trained else None)
        else:
            text.append(f"[[{piece}]]" if trained else piece)
    return text
