"""Which processes of this machine make steps: each holds a lock on a file that its pid names."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

FOLDER = "stepping"


def announce(scratch: Path) -> None:
    """This process makes steps from now on. The kernel takes the lock back when it ends, however it ends.

    `scratch` is the run's folder of a Workspace. A process of Ray Train ends when all ranks have returned, so that the
    lock also says that a checkpoint may still be on its way to the store.
    """
    folder = scratch / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / str(os.getpid()), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.lockf(descriptor, fcntl.LOCK_EX)


def stepping_processes(workspace: Path) -> set[int]:
    """Pids of the processes that make steps in any run below `workspace`, the root of a Workspace."""
    files = (file for file in workspace.glob(f"runs/*/{FOLDER}/*") if file.name.isdecimal())
    return {int(file.name) for file in files if _is_locked(file)}


def _is_locked(file: Path) -> bool:
    try:
        with file.open("r") as opened:
            fcntl.lockf(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:  # the run's folder is being deleted
        return False
    return False
