"""The cluster for a person: `make cluster-up`, `make cluster-down`.

`up` starts a process that runs the cluster, waits until it is ready, and says how to use it; `down` ends that process.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from cluster.control_plane.access import wait_until
from cluster.control_plane.binaries import program
from e2e.cluster.cleanup import clean_up, leftovers
from e2e.cluster.machine import MachineError, MachineLock, check_machine, check_rights, lock_is_held
from e2e.cluster.node import Node
from e2e.cluster.site import Site, default_folder

START_LIMIT_S = 600.0
"""A first start packs and imports images; a later one takes half a minute."""
STOP_LIMIT_S = 120.0


def main() -> int:
    """One command."""
    parser = argparse.ArgumentParser(prog="python -m e2e.cluster", description=__doc__)
    parser.add_argument("command", choices=("up", "down", "serve"))
    parser.add_argument("--folder", type=Path, default=default_folder(), help="the run folder")
    parser.add_argument("--fresh", action="store_true", help="up, serve: start without the objects of the last time")
    arguments = parser.parse_args()
    site = Site(arguments.folder.resolve())
    try:
        if arguments.command == "serve":
            return _serve(site, fresh=arguments.fresh)
        return _up(site, fresh=arguments.fresh) if arguments.command == "up" else _down(site)
    except MachineError as error:
        print(error, file=sys.stderr)
        return 1


def _serve(site: Site, *, fresh: bool) -> int:
    """Run the cluster until SIGTERM or SIGINT."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    node = Node(site.folder, fresh=fresh)
    with node:
        _pid_file(site).write_text(str(os.getpid()))
        ended.wait()
    return 0


def _up(site: Site, *, fresh: bool) -> int:
    site.folder.mkdir(parents=True, exist_ok=True)
    _check_free(site)
    began = time.monotonic()
    _pid_file(site).unlink(missing_ok=True)
    command = [sys.executable, "-m", "e2e.cluster", "serve", "--folder", str(site.folder), *["--fresh"] * fresh]
    log = site.folder / "serve.log"
    with log.open("w") as output:
        served = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    wait_until(lambda: served.poll() is not None or _pid_file(site).exists(), "the cluster", START_LIMIT_S)
    if served.poll() is not None:
        print(f"The cluster did not start:\n{log.read_text().strip()}\nLogs: {site.folder / 'logs'}", file=sys.stderr)
        return 1
    print(f"export KUBECONFIG={site.folder / 'admin.kubeconfig'}")
    print(f"export PATH={program('kubectl').parent}:$PATH")
    print(
        f"Ready after {time.monotonic() - began:.0f} s. Paste these lines into a shell, then for example: kubectl get "
        f"pods -A\nLogs are in {site.folder / 'logs'}. `make cluster-down` stops it; its objects and images stay.",
        file=sys.stderr,
    )
    return 0


def _down(site: Site) -> int:
    """End the process that `up` started, and remove what a crash may have left."""
    check_rights()
    if _pid_file(site).exists() and lock_is_held():
        process = int(_pid_file(site).read_text())
        os.kill(process, signal.SIGTERM)
        wait_until(lambda: not Path(f"/proc/{process}").exists(), f"process {process} to end", STOP_LIMIT_S)
    lock = MachineLock()
    lock.acquire(site)
    clean_up(site)
    _pid_file(site).unlink(missing_ok=True)
    lock.release()
    if left := leftovers(site):
        print("Still there:", *left, sep="\n", file=sys.stderr)
        return 1
    return 0


def _check_free(site: Site) -> None:
    """Say what is wrong here and now, not in a log."""
    check_machine(site)
    lock = MachineLock()
    lock.acquire(site)
    lock.release()


def _pid_file(site: Site) -> Path:
    return site.folder / "serve.pid"


if __name__ == "__main__":
    sys.exit(main())
