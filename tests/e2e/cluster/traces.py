"""What a node could leave on a machine, looked at without knowing how the node is made."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from pathlib import Path

from e2e.cluster.commands import run
from e2e.cluster.network import link_names
from e2e.cluster.site import CGROUP
from e2e.cluster.sysctls import CHANGED, ROOT

MOUNTS = ("/run/containerd", "/run/netns", "/var/lib/cni", "/var/lib/kubelet", "/var/log")
"""Where programs of a node mount things, besides its own folder."""


@dataclass(frozen=True)
class Traces:
    """What is on the machine and can be a node's; programs and mounts of somebody else are not looked at."""

    processes: frozenset[str]
    mounts: frozenset[str]
    links: frozenset[str]
    cgroups: frozenset[str]
    rules: frozenset[str]
    namespaces: frozenset[str]
    settings: frozenset[str]

    @classmethod
    def of_machine(cls, folder: Path) -> Traces:
        """This machine as it is now, for a node whose run folder this is."""
        mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        rules = run("iptables-save").splitlines()
        return cls(
            processes=frozenset(_processes(folder)),
            mounts=frozenset(mount for mount in mounts if mount.startswith((str(folder), *MOUNTS))),
            links=frozenset(link_names()),
            cgroups=frozenset(_cgroups()),
            rules=frozenset(re.sub(r" \[\d+:\d+\]$", "", line) for line in rules if line.startswith((":", "-A"))),
            namespaces=frozenset(run("ip", "netns").split()),
            settings=frozenset(f"{name}={(ROOT / name).read_text().strip()}" for name in CHANGED),
        )

    def added_to(self, before: Traces) -> list[str]:
        """What is here and was not before, in words."""
        return [
            f"{field.name}: {each}"
            for field in fields(self)
            for each in sorted(getattr(self, field.name) - getattr(before, field.name))
        ]


def _processes(folder: Path) -> list[str]:
    """Those whose command names the run folder or whose cgroup is a node's, with their command lines."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            cgroup = (process / "cgroup").read_text()
        except OSError:  # it ended
            continue
        if int(process.name) != os.getpid() and (str(folder) in command or f"/{CGROUP}" in cgroup):
            found.append(f"{process.name} {command}")
    return found


def _cgroups() -> list[str]:
    """The cgroups at the top of every hierarchy."""
    hierarchies = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines() if " cgroup" in line]
    return [str(path) for root in hierarchies for path in Path(root).glob("*/")]
