"""Ray's nodes: what each says when it is asked, and which can hold a whole worker."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ANSWER_S = 15.0

Node = dict[str, Any]
"""As `ray.nodes()` describes one."""
T = TypeVar("T")


def living_nodes() -> list[Node]:
    """What Ray holds to be alive: it takes a while to notice a node that has gone."""
    return [node for node in ray.nodes() if node["Alive"]]


def ask_nodes(nodes: list[Node], question: Callable[[], T]) -> list[tuple[Node, T]]:
    """Run `question` on each of these nodes; the answers of those that give one within ANSWER_S."""
    asked: dict[ray.ObjectRef[T], Node] = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(question).remote()] = node
    if not asked:  # ray.wait refuses to wait for nothing
        return []
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
    answers = []
    for answer in answered:
        with suppress(ray.exceptions.RayError):  # the node goes away, too
            answers.append((asked[answer], ray.get(answer)))
    return answers


def is_there() -> None:
    """The question whether a node is there at all."""


def workers_on(node: Node, gpus_per_worker: int) -> int:
    """How many whole workers a node holds, one at most without GPUs. A RayCluster's head has nothing for Ray: none."""
    resources = node["Resources"]
    if gpus_per_worker:
        return int(resources.get("GPU", 0) // gpus_per_worker)
    return int(resources.get("CPU", 0) >= 1)
