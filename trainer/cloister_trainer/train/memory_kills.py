"""Whether the kernel killed processes of this container for memory.

Where a control group does not end as a whole, the kernel kills one process in it and the container lives on: nobody but
this counter tells a rank that was killed for memory from one that was killed for another reason.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.train.failures import CONSEQUENCES

ANSWER_S = 20.0
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


class MemoryKills:
    """The counters of all nodes of the Ray cluster, so that each kill explains one failure. Made when Ray runs."""

    def __init__(self) -> None:
        self._known = {ray.util.get_node_ip_address(): memory_kills()}

    def explain(self, failure: CloisterError) -> CloisterError:
        """The failure, or what caused it when processes were killed for memory since the last call."""
        if failure.reason not in CONSEQUENCES or not (nodes := self._new()):
            return failure
        return CloisterError(
            FailureReason.OUT_OF_MEMORY,
            f"Worker processes on {', '.join(nodes)} were killed because their pod had no memory left. Give the "
            "workers more memory (pods.worker.resources.limits), or set training.microBatchTokens lower.",
            step=failure.step,
            node=nodes[0],
        )

    def _new(self) -> list[str]:
        """Addresses of the nodes with kills since the last call."""
        counted: dict[str, int] = {}
        for node in (each for each in ray.nodes() if each["Alive"]):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(memory_kills).remote()
            with suppress(ray.exceptions.RayError):  # the node goes away, too
                counted[node["NodeManagerAddress"]] = ray.get(asked, timeout=ANSWER_S)
        found = [node for node, count in counted.items() if count > self._known.get(node, 0)]
        self._known.update(counted)
        return found
