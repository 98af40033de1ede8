"""Settings of the kernel that kubelet, kube-proxy and CNI plugins change for the whole machine, put back at the end."""

from __future__ import annotations

import json
from pathlib import Path

HALF_CLOSED = "net/netfilter/nf_conntrack_tcp_timeout_close_wait"
CHANGED = (
    "net/ipv4/ip_forward",
    HALF_CLOSED,
    "net/ipv4/conf/all/route_localnet",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
ROOT = Path("/proc/sys")


def remember(file: Path) -> None:
    """Write the settings of this machine to a file, unless it holds those from before already."""
    if not file.exists():
        values = {name: (ROOT / name).read_text().strip() for name in CHANGED if (ROOT / name).exists()}
        file.write_text(json.dumps(values))


def restore(file: Path) -> None:
    """Set what was remembered; nothing happens when nothing was."""
    if not file.exists():
        return
    for name, value in json.loads(file.read_text()).items():
        if (ROOT / name).read_text().strip() != value:
            (ROOT / name).write_text(value)
    file.unlink()


def forward_packets() -> None:
    """Pods reach each other through this machine, and half-closed connections are remembered for an hour, as kube-proxy
    has it: the last packet of one that is forgotten would go to the Service's address, out of the machine.
    """
    (ROOT / "net/ipv4/ip_forward").write_text("1")
    (ROOT / HALF_CLOSED).write_text("3600")
