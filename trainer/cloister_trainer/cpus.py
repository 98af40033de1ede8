"""How many CPUs this process may use."""

from __future__ import annotations

import os
from pathlib import Path

CPU_QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")


def usable_cpus(quota_file: Path = CPU_QUOTA_FILE) -> int:
    """CPUs that this process may use: by affinity, and by the container's limit (cgroup v2)."""
    cpus = len(os.sched_getaffinity(0))
    if quota_file.exists():
        quota, period = quota_file.read_text().split()
        if quota != "max":
            cpus = min(cpus, max(1, round(int(quota) / int(period))))
    return cpus
