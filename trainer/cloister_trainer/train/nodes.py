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


def answer() -> None:
    """The question whether a node is there at all."""


def whole_workers(gpus_per_worker: int) -> list[Node]:
    """Nodes that live and have what one worker takes. The head of a RayCluster has neither CPUs nor GPUs for Ray."""
    what, amount = ("GPU", gpus_per_worker) if gpus_per_worker else ("CPU", 1)
    return [node for node in living_nodes() if node["Resources"].get(what, 0) >= amount]
