"""The whole control plane for a person, until Ctrl-C: `make control-plane`. Prints what to set in another shell."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable

from cluster.control_plane.binaries import build_missing, program
from cluster.control_plane.install import apply_crd
from cluster.control_plane.kuberay import install_kuberay, start_kuberay
from cluster.control_plane.kueue import install_kueue, start_kueue
from cluster.control_plane.kwok import create_node, start_kwok
from cluster.control_plane.plane import ControlPlane
from support.seaweedfs import free_ports

NODES = ("gpu-0", "gpu-1")


def main() -> int:
    """Serve until SIGINT or SIGTERM."""
    ended = threading.Event()
    build_missing()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    plane = ControlPlane()
    try:
        for title, step in _steps(plane):
            if ended.is_set():
                break
            begun = time.monotonic()
            step()
            print(f"{title}: {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)
        else:
            _tell(plane)
            ended.wait()
    finally:
        plane.stop()
    return 0


def _steps(plane: ControlPlane) -> list[tuple[str, Callable[[], object]]]:
    return [
        ("Kubernetes", plane.start),
        ("FineTuneJob", lambda: apply_crd(plane)),
        ("KubeRay's CRDs", lambda: install_kuberay(plane)),
        ("KubeRay", lambda: start_kuberay(plane, free_ports(1)[0])),
        ("Kueue's CRDs", lambda: install_kueue(plane)),
        ("Kueue", lambda: start_kueue(plane)),
        ("kwok", lambda: start_kwok(plane, free_ports(1)[0])),
        (f"Nodes {', '.join(NODES)} with 8 GPUs each", lambda: [create_node(plane, name) for name in NODES]),
    ]


def _tell(plane: ControlPlane) -> None:
    print(f"export KUBECONFIG={plane.kubeconfig}")
    print(f"export PATH={program('kubectl').parent}:$PATH")
    print(
        f"Paste these lines into another shell, then for example: kubectl get nodes\n"
        f"Logs are in {plane.logs}. Ctrl-C stops all and deletes its data.",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
