"""`python -m cloister_trainer.pre_stop`: what the kubelet runs in a worker's container before it ends the pod.

Ranks that make steps are asked for a checkpoint and waited for; then this container's Ray is ended, so that nothing
waits for the pod's grace period. Only what descends from the container's own `ray start` is touched.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from cloister_trainer.processes import POLL_S, Process, descendants, processes, send, wait_for_ends
from cloister_trainer.train.stepping import stepping_processes
from cloister_trainer.workspace import Workspace

CHECKPOINT_S = 100.0
"""How long ranks may take for their checkpoint. All of this is to fit into the pod's grace period, 120 s."""
RAYLET_S = 5.0
"""How long a raylet may take to leave its cluster and end its workers before they are killed."""
KILLED_S = 2.0
FIRST_PROCESS = 1
CONTAINERS_STANDARD_ERROR = Path("/proc/1/fd/2")


def main() -> int:
    """Ask, wait, end Ray; one sentence tells what was found."""
    found = processes()
    ray_start = find_ray_start(found)
    if ray_start is None:
        say("No `ray start` was found in this container; nothing was ended.")
        return 0
    try:
        workspace = Workspace.of_environment().root
        asked = stepping_processes(workspace) & descendants(ray_start, found)
        started = time.monotonic()
        send(asked, signal.SIGTERM)
        left = wait_for_checkpoint(workspace, asked, CHECKPOINT_S)
        say(outcome(len(asked), len(left), time.monotonic() - started))
    finally:
        end_ray(ray_start)
    return 0


def find_ray_start(found: dict[int, Process]) -> int | None:
    """The container's `ray start`: its first process, or the child of a shell that is; always this user's own."""
    for process in found.values():
        ours = FIRST_PROCESS in {process.pid, process.parent} and process.user == os.getuid()
        words = [Path(word).name for word in process.command]
        if ours and ("ray", "start") in pairwise(words):
            return process.pid
    return None


def wait_for_checkpoint(workspace: Path, asked: set[int], timeout_s: float) -> set[int]:
    """Wait until those that were asked have ended, after a checkpoint or without; returns those that have not."""
    deadline = time.monotonic() + timeout_s
    while (left := asked & stepping_processes(workspace)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return left


def end_ray(ray_start: int) -> None:
    """End the raylet and what it has started, then `ray start`: the container ends with it, and this process, too.

    `ray start` goes on when a raylet ends that was asked to, so that this process can be done first.
    """
    found = processes()
    raylets = {pid for pid in descendants(ray_start, found) if Path(found[pid].command[0]).name == "raylet"}
    theirs = {pid for raylet in raylets for pid in descendants(raylet, found)} | raylets
    send(raylets, signal.SIGTERM)
    left = wait_for_ends(theirs, RAYLET_S)
    send(left, signal.SIGKILL)
    wait_for_ends(left, KILLED_S)
    send({ray_start}, signal.SIGTERM)


def outcome(asked: int, left: int, seconds: float) -> str:
    """What came of the question."""
    if not asked:
        return "No rank makes steps here. Ray is ended."
    ends = f"{left} did not end" if left else "all ended"
    return f"Ranks asked for a checkpoint: {asked}; {ends} within {seconds:.1f} s. Ray is ended."


def say(sentence: str) -> None:
    """On standard error, which the kubelet shows when this fails, and on the container's, which is its log."""
    line = f"cloister: {sentence}\n"
    with suppress(OSError):
        sys.stderr.write(line)
    with suppress(OSError), CONTAINERS_STANDARD_ERROR.open("a") as log:
        log.write(line)


if __name__ == "__main__":
    sys.exit(main())
