"""Random stories side by side, an operator that is killed every few seconds, one restart of the API server."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest

from cluster.chronicle import Chronicle
from cluster.control_plane.access import wait_until
from cluster.control_plane.api import Object
from cluster.control_plane.plane import ControlPlane
from cluster.operator_jobs import Scene
from cluster.operator_process import OperatorProcess
from cluster.promises import assert_kept
from cluster.random_story import RandomStory

pytest_plugins = ["cluster.operator_fixtures"]
pytestmark = [pytest.mark.usefixtures("large_node"), pytest.mark.timeout(900)]

STORIES = 20
LASTS_S = 30.0
A_ROUND_S = 1.0
LIVES_S = (4.0, 9.0)
REACHED = {"Suspended", "Preparing", "Queued", "Training"}


@pytest.mark.parametrize("first", [0, *(pytest.param(n * STORIES, marks=pytest.mark.soak) for n in range(1, 10))])
def test_whatever_happens_the_promises_are_kept(
    first: int,
    new_scene: Callable[[], Scene],
    cloister: OperatorProcess,
    control_plane: ControlPlane,
    chronicle: Chronicle,
) -> None:
    cloister.start()
    stories = [RandomStory(seed, new_scene()) for seed in range(first, first + STORIES)]
    for story in stories[::2]:
        story.plant_strangers()
    versions = settled(stories)
    play(stories, first, cloister, control_plane)
    cloister.start()
    control_plane.wait_until_ready()
    deleted = [story for story in stories if not story.scene.exists]
    for story in stories:
        try:
            if story in deleted:
                story.scene.wait_until_gone(*(path.rpartition("/")[2] for path in story.strangers))
            assert_kept(chronicle, story.scene.namespace)
            assert {path: version_of(control_plane, path) for path in story.strangers} == {
                path: versions[path] for path in story.strangers
            }, "an object of somebody else was touched"
        except AssertionError as error:
            raise AssertionError(f"story {story.seed}: {error}; after {', '.join(story.told)}") from error
    phases = {
        entry.object.get("status", {}).get("phase")
        for story in stories
        for entry in chronicle.entries(story.scene.namespace, "finetunejobs")
    }
    assert phases >= REACHED, "the stories do not lead far enough"
    assert deleted and any(story.strangers for story in stories)


def play(stories: list[RandomStory], seed: int, operator: OperatorProcess, plane: ControlPlane) -> None:
    """Something happens to each job about once a second."""
    chance = random.Random(seed)
    begun = time.monotonic()
    next_kill, restarted = begun + chance.uniform(*LIVES_S), False
    while (now := time.monotonic()) < begun + LASTS_S:
        if now >= next_kill:
            operator.kill()
            operator.start()
            next_kill = now + chance.uniform(*LIVES_S)
        if not restarted and now > begun + LASTS_S / 2:
            restarted = True
            server = plane.program("kube-apiserver")
            server.kill()
            server.start()
        for story in stories:
            if chance.random() < 0.7:
                story.happen()
        threading.Event().wait(max(0.0, now + A_ROUND_S - time.monotonic()))


def settled(stories: list[RandomStory]) -> dict[str, tuple[str, str]]:
    """UID and version of every stranger, once the Job controller has said what it has to say of a suspended one."""

    def has_been_seen(found: Object) -> bool:
        return not found["spec"].get("suspend") or "conditions" in found.get("status", {})

    versions = {}
    for story in stories:
        api = story.scene.plane.api
        for path in story.strangers:
            wait_until(lambda api=api, path=path: has_been_seen({"spec": {}, **api.get(path)}), "a settled stranger")  # type: ignore[misc]
            versions[path] = version_of(story.scene.plane, path)
    return versions


def version_of(plane: ControlPlane, path: str) -> tuple[str, str]:
    metadata = plane.api.get(path)["metadata"]
    return metadata["uid"], metadata["resourceVersion"]
