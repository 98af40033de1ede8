"""What a node needs of this machine, said in sentences; and that it is the only one."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import IO

from cluster.control_plane.binaries import NODE_PROGRAMS, PROGRAMS, MissingProgramError, program
from e2e.cluster.site import LONGEST_SOCKET, Site

LOCK = Path("/run/cloister-node.lock")
COMMANDS = (
    "containerd", "ctr", "runc", "iptables", "iptables-save", "iptables-restore", "ip", "nsenter", "unshare", "gcc",
)  # fmt: skip
CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
CNI_PLUGINS = ("ptp", "host-local", "portmap", "loopback")
BUSYBOX = Path("/bin/busybox")
CAPABILITIES = {12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN"}


class MachineError(Exception):
    """A node cannot run here; each line says what is missing and what to do."""


def check_machine(site: Site) -> None:
    """MachineError unless a node can be started on this machine."""
    check_rights()
    if missing := [*_programs(), *_path_too_long(site)]:
        raise MachineError("\n".join(missing))


def check_rights() -> None:
    """MachineError unless this process may start and stop a node."""
    if os.geteuid() != 0:
        raise MachineError("A node needs root (network namespaces, mounts, cgroups): run this as root.")
    status = Path("/proc/self/status").read_text()
    effective = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff")), 16)
    if lacking := [name for bit, name in CAPABILITIES.items() if not effective >> bit & 1]:
        raise MachineError(f"A node needs {' and '.join(lacking)}: run this outside of an unprivileged container.")


def cni_plugin(name: str) -> Path:
    """Where a CNI plugin is. FileNotFoundError when it is nowhere."""
    for folder in CNI_FOLDERS:
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"The CNI plugin {name} is not in {' or '.join(map(str, CNI_FOLDERS))}")


class MachineLock:
    """Held while a node runs. The names and addresses of a node exist once on a machine, so there is one node."""

    def __init__(self) -> None:
        self._file: IO[str] | None = None

    def acquire(self, site: Site) -> None:
        """Take it. MachineError, naming who has it, when another node or somebody's Kubernetes runs."""
        file = LOCK.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                holder = file.read().strip()
            raise MachineError(
                f"A node runs on this machine already ({holder}), and there can be only one. "
                f"Stop it first: `make cluster-down`, or end the tests that started it."
            ) from None
        if other := _other_kubernetes():
            file.close()
            raise MachineError(other)
        file.truncate(0)
        file.write(f"process {os.getpid()}, folder {site.folder}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Let go. May be called twice."""
        if self._file:
            self._file.close()
            self._file = None


def lock_is_held() -> bool:
    """Whether a node runs on this machine, started by whomever."""
    if not LOCK.exists():
        return False
    with LOCK.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _programs() -> list[str]:
    lacking = [name for name in COMMANDS if not shutil.which(name)]
    lacking += [f"the CNI plugin {name}" for name in CNI_PLUGINS if not any((f / name).exists() for f in CNI_FOLDERS)]
    lacking += [] if BUSYBOX.exists() else [str(BUSYBOX)]
    said = [f"Not on this machine: {', '.join(lacking)}. scripts/node-setup.sh installs them."] if lacking else []
    for name in (*PROGRAMS, *NODE_PROGRAMS):
        try:
            program(name)
        except MissingProgramError as error:
            return [*said, str(error)]
    return said


def _path_too_long(site: Site) -> list[str]:
    if len(os.fsencode(site.containerd_socket)) <= LONGEST_SOCKET:
        return []
    return [f"The path of the run folder, {site.folder}, is too long for the sockets in it: choose a shorter one."]


def _other_kubernetes() -> str | None:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:  # it ended
            continue
        name = Path(os.fsdecode(command.split(b"\0")[0])).name
        if name in ("kubelet", "kube-proxy"):
            return f"{name} runs on this machine (process {process.name}), and a node would share its rules and names."
    return None
