"""An operator that is killed, an API server that goes away: the same end, and nothing twice."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from cloister_api.events import Progress
from cluster.chronicle import Chronicle
from cluster.control_plane.access import wait_until
from cluster.operator_jobs import TIMEOUT_S, Scene
from cluster.operator_stories import (
    assert_complete_at_the_first_attempt,
    assert_made_once,
    children,
    goes_by_itself,
)

pytest_plugins = ["cluster.operator_fixtures"]

PROGRESS = Progress(step=3, total_steps=9, epoch=0.3, loss=1.5, learning_rate=1e-4, tokens_per_second=9, eta_seconds=60)


def is_complete(scene: Scene) -> bool:
    return bool(scene.status.get("phase") == "Complete")


@pytest.mark.timeout(600)
def test_an_operator_killed_whenever_something_is_new_ends_where_others_end(scene: Scene, chronicle: Chronicle) -> None:
    seen: set[tuple[str, str]] = set()
    kills = 0
    goes_by_itself(scene)

    def complete() -> bool:
        nonlocal kills
        if new := set(children(chronicle, scene)) - seen:
            seen.update(new)
            scene.operator.kill()
            scene.operator.start()
            kills += 1
        return is_complete(scene)

    wait_until(complete, "a complete job", 4 * TIMEOUT_S)
    assert kills >= 4
    assert_complete_at_the_first_attempt(scene)
    assert_made_once(chronicle, scene)


def test_a_run_goes_on_though_the_api_server_was_away(scene: Scene) -> None:
    scene.training()
    operator, before = scene.operator.pid, scene.items("rayjobs")[0]["metadata"]["uid"]
    server = scene.plane.program("kube-apiserver")
    server.kill()
    server.start()
    scene.plane.wait_until_ready()
    scene.driver_says(PROGRESS)
    scene.wait_until(lambda status: status.get("progress", {}).get("step") == 3, "progress")
    scene.ray_ends("SUCCEEDED")
    scene.publish_succeeds()
    assert_complete_at_the_first_attempt(scene)
    assert [each["metadata"]["uid"] for each in scene.items("rayjobs")] == [before]
    assert scene.operator.pid == operator, "it needed no new start"


def test_what_happened_while_the_operator_was_away_is_seen(scene: Scene, new_scene: Callable[[], Scene]) -> None:
    deleted, suspended, fresh = new_scene(), new_scene(), new_scene()
    scene.training()
    deleted.preparing()
    suspended.preparing()

    scene.operator.kill()
    scene.plane.api.delete(f"/apis/ray.io/v1/namespaces/{scene.namespace}/rayjobs/contracts-1")
    wait_until(lambda: scene.names("rayjobs") == [], "the end of the RayJob")
    deleted.delete()
    suspended.edit(suspend=True)
    fresh.apply()
    scene.operator.start()

    fresh.running("prepare")
    suspended.wait_for("Suspended", "Suspended")
    wait_until(lambda: suspended.items("pods") == [], "the end of prepare")
    scene.wait_for("Queued", "BackingOff", "RayJob contracts-1 was deleted by somebody else")
    deleted.wait_until_gone()


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_many_jobs_survive_random_kills(new_scene: Callable[[], Scene], large_node: str, chronicle: Chronicle) -> None:
    """Twelve jobs at once, an operator that lives for a few seconds at a time, one restart of the API server."""
    chance = random.Random(4)
    scenes = [new_scene() for _ in range(12)]
    for scene in scenes:
        goes_by_itself(scene)
    operator, server = scenes[0].operator, scenes[0].plane.program("kube-apiserver")
    for life in range(12):
        operator.kill()
        operator.start()
        if life == 5:
            server.kill()
            server.start()
            scenes[0].plane.wait_until_ready()
        threading.Event().wait(chance.uniform(1, 6))
    for scene in scenes:
        assert_complete_at_the_first_attempt(scene)
        assert_made_once(chronicle, scene)
