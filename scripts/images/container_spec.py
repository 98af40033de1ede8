"""The OCI runtime's configuration of a container that is confined like a pod of the chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from images.engine import USER

CAPABILITY_SETS = ("bounding", "effective", "inheritable", "permitted", "ambient")
NAMESPACES = ("pid", "network", "ipc", "uts", "mount")
"""A new network namespace has loopback alone."""
TEMPORARY = ["nosuid", "nodev", "mode=1777"]
FILE_SYSTEMS: tuple[dict[str, Any], ...] = (
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
    {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*TEMPORARY, "size=1g"]},  # noqa: S108
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
    {"destination": "/tmp", "type": "tmpfs", "source": "tmp", "options": TEMPORARY},  # noqa: S108
)


def container_spec(
    root: Path, command: Sequence[str], variables: Sequence[str], mounts: Mapping[Path, str]
) -> dict[str, Any]:
    """A command in the file system at `root`, which it cannot write; nor can it write what is mounted."""
    binds = [
        {"destination": target, "type": "bind", "source": str(source), "options": ["bind", "ro"]}
        for source, target in mounts.items()
    ]
    return {
        "ociVersion": "1.0.2",
        "hostname": "container",
        "root": {"path": str(root), "readonly": True},
        "process": {
            "user": {"uid": USER, "gid": USER},
            "args": list(command),
            "env": list(variables),
            "cwd": "/",
            "capabilities": {name: [] for name in CAPABILITY_SETS},
            "noNewPrivileges": True,
        },
        "mounts": [*FILE_SYSTEMS, *binds],
        "linux": {
            "namespaces": [{"type": name} for name in NAMESPACES],
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }
