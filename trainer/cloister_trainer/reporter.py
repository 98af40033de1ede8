"""What a person reads while a step works: sentences and progress, drawn on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cloister_api.text import printable

PLAIN_PROGRESS_INTERVAL_S = 10.0
PLAIN_WIDTH = 120
"""Columns of a table where standard output is not a terminal."""
LAYOUT = "\n\t"
"""Control characters that may stand in a sentence."""


class ProgressTask(Protocol):
    """Something that advances towards its total."""

    def advance(self, amount: int = 1) -> None:
        """Move on by `amount`."""


def quiet_libraries() -> None:
    """Keep libraries' warnings about their own future out of what a person reads; tests see them."""
    warnings.filterwarnings("ignore")


def discard_output(stream: IO[str]) -> None:
    """Nobody reads `stream` any more: what is written to it from now on goes nowhere, and the work goes on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class PlainConsole(Console):
    """Prints text as it is: `:100:` is no emoji and `[b]` no style, since both occur in data."""

    def __init__(self, file: IO[str], *, soft_wrap: bool = False, width: int | None = None) -> None:
        super().__init__(file=file, soft_wrap=soft_wrap, width=width, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """Go on in silence: `| head` ends the reading, not the work."""
        self.quiet = True
        discard_output(self.file)


class Reporter:
    """Sentences for a person on standard error; standard output stays free for results and event lines."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or PlainConsole(sys.stderr, soft_wrap=True)
        self.output = PlainConsole(sys.stdout, width=None if sys.stdout.isatty() else PLAIN_WIDTH)

    @classmethod
    def silent(cls) -> Reporter:
        """A reporter that nobody hears."""
        return cls(PlainConsole(io.StringIO()))

    def say(self, sentence: str) -> None:
        """Tell what was found or done."""
        self.console.print(printable(sentence, LAYOUT))

    def result(self, sentence: str) -> None:
        """Print a command's result on standard output."""
        self.output.print(printable(sentence, LAYOUT), soft_wrap=True)

    def fail(self, reason: str, message: str) -> None:
        """Tell why the work ended, and what to do."""
        self.console.print(f"{reason}: ", style="bold red", end="")
        self.console.print(printable(message, LAYOUT))

    def warn(self, sentence: str) -> None:
        """Tell what is worth knowing before it hurts."""
        self.console.print(printable(f"Warning: {sentence}", LAYOUT), style="yellow")

    @contextmanager
    def progress(self, label: str, total: int | None) -> Iterator[ProgressTask]:
        """A bar on a terminal; elsewhere a line now and then."""
        if not self.console.is_terminal:
            yield _PlainProgress(self, label, total)
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as bars:
            yield _BarProgress(bars, bars.add_task(label, total=total))


class _BarProgress:
    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars, self._task = bars, task

    def advance(self, amount: int = 1) -> None:
        self._bars.advance(self._task, amount)


class _PlainProgress:
    def __init__(self, reporter: Reporter, label: str, total: int | None) -> None:
        self._reporter, self._label, self._total = reporter, label, total
        self._done, self._said_at = 0, time.monotonic()

    def advance(self, amount: int = 1) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._said_at >= PLAIN_PROGRESS_INTERVAL_S:
            self._said_at = now
            of_total = f" of {self._total}" if self._total is not None else ""
            self._reporter.say(f"{self._label}: {self._done}{of_total}")
