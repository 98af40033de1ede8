"""Each write of a job's whole way fails once, before or after it reached the server; the operator is killed at each.

The end is always the same: published at the first attempt, and nothing was made twice.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from cluster.chronicle import Chronicle
from cluster.control_plane.access import wait_until
from cluster.control_plane.api import Object
from cluster.edges.api_calls import Call, Fault, Lose, Refuse
from cluster.edges.api_proxy import ApiProxy
from cluster.operator_jobs import Scene
from cluster.operator_stories import assert_complete_at_the_first_attempt, assert_made_once, goes_by_itself

pytest_plugins = ["cluster.operator_fixtures"]
pytestmark = [pytest.mark.usefixtures("large_node"), pytest.mark.timeout(900)]

ALWAYS_WRITTEN = {
    ("patch", "finetunejobs", "status"),
    *(("create", kind, "") for kind in ("networkpolicies", "configmaps", "jobs", "rayjobs", "events")),
}
KILLS = 12
"""Of all writes so many, in the tests that run every day."""


@dataclass(frozen=True)
class Write:
    """The n-th call of its sort for one job."""

    verb: str
    kind: str
    part: str
    number: int

    def __str__(self) -> str:
        return f"{self.verb} {self.kind}{'/' if self.part else ''}{self.part} {self.number}"


def writes_of(calls: list[Call], namespace: str) -> list[Write]:
    """All writes for a namespace's job, in order."""
    counted: Counter[tuple[str, str, str]] = Counter()
    found = []
    for call in calls:
        if call.writes and call.namespace == namespace:
            sort = call.verb, call.kind, call.part
            counted[sort] += 1
            found.append(Write(*sort, counted[sort]))
    return found


class Saboteur:
    """A rule that does something to one write of each job, once."""

    def __init__(self, plan: dict[str, tuple[Write, Fault]]) -> None:
        self._plan = plan
        self._counted: dict[str, Counter[tuple[str, str, str]]] = {namespace: Counter() for namespace in plan}
        self.done: dict[str, Write] = {}

    def __call__(self, call: Call) -> Fault | None:
        if not call.writes or call.namespace not in self._plan:
            return None
        sort = call.verb, call.kind, call.part
        counted = self._counted[call.namespace]
        counted[sort] += 1
        write, fault = self._plan[call.namespace]
        if Write(*sort, counted[sort]) != write or call.namespace in self.done:
            return None
        self.done[call.namespace] = write
        return fault


@pytest.fixture(scope="module")
def through(proxy: ApiProxy) -> Object:
    return proxy.entry


@pytest.fixture(scope="module")
def writes(new_scene: Callable[[], Scene], proxy: ApiProxy) -> list[Write]:
    """The writes of a job that nothing disturbs."""
    scene = new_scene()
    goes_by_itself(scene)
    assert_complete_at_the_first_attempt(scene)
    found = writes_of(proxy.calls, scene.namespace)
    assert {(each.verb, each.kind, each.part) for each in found} == ALWAYS_WRITTEN
    return found


def play(
    plan: list[tuple[Write, Fault]], new_scene: Callable[[], Scene], proxy: ApiProxy, chronicle: Chronicle
) -> None:
    """One job for each fault, all at once; assert how they end."""
    scenes = [new_scene() for _ in plan]
    saboteur = Saboteur({scene.namespace: fault for scene, fault in zip(scenes, plan, strict=True)})
    operator = scenes[0].operator
    with proxy.ruled(saboteur):
        for scene in scenes:
            goes_by_itself(scene)

        def all_complete() -> bool:
            operator.start()
            return all(scene.status.get("phase") in ("Complete", "Failed") for scene in scenes)

        try:
            wait_until(all_complete, "the ends of all jobs", 300)
        except TimeoutError as error:
            phases = Counter(scene.status.get("phase") for scene in scenes)
            raise AssertionError(f"{error}: {phases}\n{operator.log_end()}") from None
    operator.start()  # the last write may have ended it
    for scene, (write, fault) in zip(scenes, plan, strict=True):
        try:
            assert_complete_at_the_first_attempt(scene)
            assert_made_once(chronicle, scene)
        except AssertionError as error:
            raise AssertionError(f"{type(fault).__name__} {write}: {error}") from error
    reached = {(write.verb, write.kind, write.part) for write in saboteur.done.values()}
    assert reached >= {(write.verb, write.kind, write.part) for write, _ in plan}
    assert len(saboteur.done) >= 0.6 * len(plan), "a job that is disturbed goes through fewer states, but not that few"


def test_a_write_that_is_lost_changes_nothing(
    writes: list[Write], new_scene: Callable[[], Scene], proxy: ApiProxy, chronicle: Chronicle
) -> None:
    plan: list[tuple[Write, Fault]] = [(write, fault) for write in writes for fault in (Refuse(), Lose())]
    play(plan, new_scene, proxy, chronicle)


def killed_at(writes: list[Write], scene: Scene, proxy: ApiProxy) -> list[tuple[Write, Fault]]:
    """The operator is killed at each of the writes, before it and after it."""

    def kill() -> None:
        scene.operator.crash()
        proxy.cut_watches()

    return [(write, fault) for write in writes for fault in (Refuse(then=kill), Lose(then=kill))]


def test_an_operator_killed_at_a_write_ends_where_others_end(
    writes: list[Write], scene: Scene, new_scene: Callable[[], Scene], proxy: ApiProxy, chronicle: Chronicle
) -> None:
    """A kill before and after each sort of write, and at some more of them by chance."""
    every = killed_at(writes, scene, proxy)
    first = [(write, fault) for write, fault in every if write.number == 1 and write.kind != "events"]
    some = random.Random(4).sample([each for each in every if each not in first], max(0, KILLS - len(first)))
    play([*first, *some], new_scene, proxy, chronicle)


@pytest.mark.soak
def test_an_operator_killed_at_every_write_ends_where_others_end(
    writes: list[Write], scene: Scene, new_scene: Callable[[], Scene], proxy: ApiProxy, chronicle: Chronicle
) -> None:
    play(killed_at(writes, scene, proxy), new_scene, proxy, chronicle)
