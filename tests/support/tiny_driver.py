"""The driver in a process of its own: `python -m support.tiny_driver TINY.json`, event lines on standard output."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from cloister_api.events import Event, format_event
from cloister_api.exit_codes import ExitCode
from cloister_api.run import Run
from cloister_trainer.interrupt import Interrupted
from cloister_trainer.records import PlanFile
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import open_storage
from cloister_trainer.train import launch
from cloister_trainer.train.driver import train
from support import odd_rank


def main(run_file: str, plan_file: str, scratch: str) -> int:
    run = Run.model_validate_json(Path(run_file).read_text())
    plan = PlanFile.model_validate_json(Path(plan_file).read_text())

    def emit(event: Event) -> None:
        print(format_event(run.uid, 1, datetime.now(UTC), event), flush=True)

    if odd_rank.STEP_S in os.environ:
        launch.train_on_ray = odd_rank.slow_on_ray
    try:
        train(run, plan, open_storage(run.settings.storage), Reporter(), Path(scratch), emit)
    except Interrupted as interrupted:
        print(interrupted.sentence(), file=sys.stderr)
        return ExitCode.INTERRUPTED
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
