"""Short commands of this machine, with an error that says what they said."""

from __future__ import annotations

import subprocess
from pathlib import Path


class CommandError(Exception):
    """A command ended with a failure; the message is the command and what it said."""


def run(*command: str | Path, text: str | None = None, timeout_s: float = 300.0) -> str:
    """What a command prints; `text` is its standard input. CommandError when it fails."""
    ended = subprocess.run(
        [str(part) for part in command], input=text, capture_output=True, text=True, check=False, timeout=timeout_s
    )
    if ended.returncode:
        said = (ended.stderr or ended.stdout).strip()
        raise CommandError(f"`{' '.join(map(str, command))}` ended with {ended.returncode}: {said}")
    return ended.stdout


def succeeds(*command: str | Path) -> bool:
    """Whether a command ends well."""
    ended = subprocess.run([str(part) for part in command], capture_output=True, check=False, timeout=60.0)
    return ended.returncode == 0
