"""The driver in a process of its own, and what it tells."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import psutil  # type: ignore[import-untyped]

from cloister_api.events import CheckpointSaved, Event, parse_event
from support.tiny_run import UID, TinyRun


class Driver:
    """The driver in a process of its own, and the events that it has written."""

    def __init__(self, tiny: TinyRun, environment: Mapping[str, str]) -> None:
        tiny.root.mkdir(parents=True, exist_ok=True)
        run_file, plan_file = tiny.root / "run.json", tiny.root / "plan.json"
        run_file.write_text(tiny.run.model_dump_json())
        plan_file.write_text(tiny.plan.model_dump_json())
        self._said = tiny.root / "driver.log"
        with self._said.open("w") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "support.tiny_driver", str(run_file), str(plan_file), str(tiny.scratch)],
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
            )
        self.descendants: list[psutil.Process] = []

    def events(self) -> Iterator[Event]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = parse_event(line.rstrip("\n"), UID, 1)
            if event is not None:
                yield event

    def said(self) -> str:
        """What a person reads, and the workers' own lines."""
        return self._said.read_text()

    def workers(self) -> list[psutil.Process]:
        """The processes of the ranks."""
        return self._actors("RayTrainWorker")

    def controllers(self) -> list[psutil.Process]:
        """The process of Ray Train's controller, when there is one."""
        return self._actors("TrainController")

    def _actors(self, name: str) -> list[psutil.Process]:
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if name in child.name():
                    found.append(child)
        return found

    def until_checkpoint(self, step: int) -> None:
        """Read events up to a checkpoint of `step` or later."""
        next(event for event in self.events() if isinstance(event, CheckpointSaved) and event.step >= step)
        self.descendants = psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def driver_of(tiny: TinyRun, environment: Mapping[str, str] | None = None) -> Iterator[Driver]:
    """The driver of a run; killed at the end."""
    driver = Driver(tiny, environment or {})
    try:
        yield driver
    finally:
        driver.process.kill()
        driver.process.wait()
        assert driver.process.stdout is not None
        driver.process.stdout.close()
        sys.stderr.write(driver.said())
