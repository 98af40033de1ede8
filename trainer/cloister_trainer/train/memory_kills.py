"""Whether the kernel killed processes of this container for memory.

Where a control group does not end as a whole, the kernel kills one process in it and the container lives on: nobody but
this counter tells a rank that was killed for memory from one that was killed for another reason.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import ray

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.train.failures import CONSEQUENCES, MORE_HOST_MEMORY
from cloister_trainer.train.nodes import ask_nodes, living_nodes

COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"))
"""Of cgroup v2 and of v1, as a container sees its own; both have a line `oom_kill <count>`."""


def memory_kills() -> int:
    """How many processes of this container were killed since it began; 0 where that is not known."""
    for file in COUNTERS:
        try:
            text = file.read_text()
        except OSError:
            continue
        for line in text.splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill" and count.isdigit():
                return int(count)
    return 0


def count_everywhere() -> dict[str, int]:
    """The counters of all nodes of the Ray cluster that answer, by address."""
    return {node["NodeManagerAddress"]: count for node, count in ask_nodes(living_nodes(), memory_kills)}


class MemoryKills:
    """What the counters were when a failure was last looked at, so that each kill explains one failure.

    Containers of workers begin with the driver, at 0; the driver's own, which may be a whole machine, does not.
    """

    def __init__(self, own_address: str, count: Callable[[], dict[str, int]] = count_everywhere) -> None:
        self._known = {own_address: memory_kills()}
        self._count = count

    def explain(self, failure: CloisterError) -> CloisterError:
        """The failure, or what caused it when processes were killed for memory since the last call."""
        counted: dict[str, int] = {}
        with suppress(ray.exceptions.RayError):  # a Ray that is gone is no reason to forget the failure
            counted = self._count()
        nodes = [node for node, count in counted.items() if count > self._known.get(node, 0)]
        self._known.update(counted)
        if failure.reason not in CONSEQUENCES or not nodes:
            return failure
        return CloisterError(
            FailureReason.OUT_OF_MEMORY,
            f"Worker processes on {', '.join(nodes)} were killed because their pod had no memory left. "
            f"{MORE_HOST_MEMORY}",
            step=failure.step,
            node=nodes[0],
        )
