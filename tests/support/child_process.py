"""A program on this machine that ends with whoever started it, whatever ended that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

# Runs in a fresh interpreter that becomes the program: PR_SET_PDEATHSIG (1) outlives execv, so that the kernel kills
# the program when its parent is gone. preexec_fn is not safe in a process with threads.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def start_child(
    command: Sequence[str], log: Path, *, folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start `command` in `folder`, its output appended to `log`; it is killed when this thread or process ends.

    It has a session of its own: a terminal's Ctrl-C is for whoever uses the program, which may still need it.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command],
            cwd=folder,
            env=None if environment is None else dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


class Program:
    """One long-running program with a log of its own, that can be stopped, killed and started again."""

    def __init__(
        self, name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.command = [str(part) for part in command]
        self.folder = folder
        self.log_file = folder / f"{name}.log"
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The running program's process."""
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def log_end(self, characters: int = 4000) -> str:
        """The newest part of what the program said."""
        return self.log_file.read_text(errors="replace")[-characters:] if self.log_file.exists() else ""

    def start(self) -> None:
        """Start it; does nothing when it runs."""
        if not self.running:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._process = start_child(self.command, self.log_file, folder=self.folder, environment=self._environment)

    def stop(self, timeout_s: float = 20.0) -> None:
        """Ask it to end (SIGTERM), and kill it when it does not. May be called twice."""
        self._end(signal.SIGTERM, timeout_s)

    def kill(self) -> None:
        """End it at once (SIGKILL), as a crash does. May be called twice."""
        self._end(signal.SIGKILL, None)

    def _end(self, number: signal.Signals, timeout_s: float | None) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
