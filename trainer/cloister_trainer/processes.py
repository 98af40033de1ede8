"""Processes as /proc shows them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.1


@dataclass(frozen=True)
class Process:
    """A process that has not ended."""

    pid: int
    parent: int
    user: int
    command: tuple[str, ...]


def processes(proc: Path = Path("/proc")) -> dict[int, Process]:
    """All processes of this PID namespace, by pid."""
    found: dict[int, Process] = {}
    for folder in proc.iterdir():
        if folder.name.isdecimal():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                command = tuple((folder / "cmdline").read_text(errors="replace").split("\0"))
                if state not in {"Z", "X"}:
                    found[int(folder.name)] = Process(int(folder.name), int(parent), folder.stat().st_uid, command)
    return found


def descendants(root: int, among: dict[int, Process]) -> set[int]:
    """Children of `root`, their children, and so on."""
    found: set[int] = set()
    generation = {root}
    while generation:
        generation = {process.pid for process in among.values() if process.parent in generation} - found
        found |= generation
    return found


def send(pids: Collection[int], number: signal.Signals) -> None:
    """Send a signal to each that has not ended."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def wait_for_ends(pids: Collection[int], timeout_s: float) -> set[int]:
    """Wait until they have ended, at most `timeout_s` seconds; returns those that have not."""
    deadline = time.monotonic() + timeout_s
    while (left := processes().keys() & set(pids)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return left
