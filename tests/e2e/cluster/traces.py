"""What a node could leave on a machine, looked at without knowing how the node is made."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path

from e2e.cluster.commands import run
from e2e.cluster.network import link_names
from e2e.cluster.sysctls import CHANGED, ROOT

PROGRAMS = ("containerd", "containerd-shim", "coredns", "etcd", "kube", "kueue", "pause", "runc")


@dataclass(frozen=True)
class Traces:
    """Everything of these kinds that is on the machine."""

    processes: frozenset[str]
    mounts: frozenset[str]
    links: frozenset[str]
    cgroups: frozenset[str]
    rules: frozenset[str]
    namespaces: frozenset[str]
    settings: frozenset[str]

    @classmethod
    def of_machine(cls) -> Traces:
        """This machine as it is now."""
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        rules = run("iptables-save").splitlines()
        return cls(
            processes=frozenset(_processes()),
            mounts=frozenset(line.split()[1] for line in mounts),
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


def _processes() -> list[str]:
    """Programs of a cluster, whoever started them, with their command lines."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it ended
            continue
        if Path(words[0]).name.startswith(PROGRAMS):
            found.append(f"{process.name} {' '.join(words)}")
    return found


def _cgroups() -> list[str]:
    """The cgroups at the top of every hierarchy."""
    hierarchies = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines() if " cgroup" in line]
    return [str(path) for root in hierarchies for path in Path(root).glob("*/")]
