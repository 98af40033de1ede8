"""The driver as a command in a pod's container, as Ray's submitter starts it there."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from cloister_api.events import Event, parse_event
from support.pods import Pod
from support.tiny_run import UID, TinyRun


@contextmanager
def driver_in(head: Pod, tiny: TinyRun, program: str = "support.tiny_driver") -> Iterator[tuple[Iterator[Event], Path]]:
    """The events, and the file with what it says to a person. It is killed at the end."""
    run_file, plan_file, said = (tiny.root / name for name in ("run.json", "plan.json", "said"))
    run_file.write_text(tiny.run.model_dump_json())
    plan_file.write_text(tiny.plan.model_dump_json())
    command = shlex.join(["python", "-m", program, str(run_file), str(plan_file), str(tiny.scratch)])
    with head.command("bash", "-c", f"exec {command} 2> {shlex.quote(str(said))}") as process:
        try:
            yield (event for line in process.stdout or [] if (event := parse_event(line.rstrip("\n"), UID, 1))), said
        finally:
            for child in psutil.Process(process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            print(said.read_text() if said.exists() else "It has said nothing.")
