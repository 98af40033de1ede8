"""The cgroup under which every pod runs, in each hierarchy of this machine."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

from cluster.control_plane.access import wait_until
from e2e.cluster.site import CGROUP


def create_cgroup() -> None:
    """Make our cgroup in every hierarchy, as kubelet's cgroupRoot must be."""
    for hierarchy in _hierarchies():
        (hierarchy / CGROUP).mkdir(exist_ok=True)


def kill_pods() -> None:
    """End every process in our cgroup, and wait until none is left."""

    def none_is_left() -> bool:
        found = _processes()
        for process in found:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return not found

    wait_until(none_is_left, "the pods' processes to end", timeout_s=30.0)


def remove_cgroup() -> None:
    """Remove our cgroup with all that kubelet and runc made below it."""
    for cgroup in cgroups():
        wait_until(partial(_removed, cgroup), f"the cgroup {cgroup} to go", timeout_s=20.0)


def cgroups() -> list[Path]:
    """Our cgroups that are there, the deepest first."""
    found: list[Path] = []
    for hierarchy in _hierarchies():
        top = hierarchy / CGROUP
        found += [Path(folder) for folder, _, _ in os.walk(top, topdown=False)]
    return found


def _removed(cgroup: Path) -> bool:
    """A cgroup is busy for a moment after its last process ended; `wait_until` takes the OSError for a no."""
    if cgroup.exists():
        cgroup.rmdir()
    return True


def _processes() -> set[int]:
    found: set[int] = set()
    for cgroup in cgroups():
        try:
            found.update(map(int, (cgroup / "cgroup.procs").read_text().split()))
        except OSError:  # it went, or is a threaded one
            continue
    return found


def _hierarchies() -> list[Path]:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(target) for _, target, kind, *_ in mounts if kind in ("cgroup", "cgroup2")]
