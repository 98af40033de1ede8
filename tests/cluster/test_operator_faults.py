"""An operator that is killed, an API server that goes away: the same end, and nothing twice."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable

import pytest

from cloister_api.events import Progress
from cluster.control_plane.access import wait_until
from cluster.edges.pod_status import Ended
from cluster.operator_jobs import DENY_POLICY, TIMEOUT_S, Scene

pytest_plugins = ["cluster.operator_fixtures"]

CHILDREN = ("jobs", "rayjobs", "rayclusters", "configmaps", "networkpolicies")
PROGRESS = Progress(step=3, total_steps=9, epoch=0.3, loss=1.5, learning_rate=1e-4, tokens_per_second=9, eta_seconds=60)


class Sightings:
    """Every child of a job that was ever seen, by kind and name, with the UIDs that it had."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.uids: dict[tuple[str, str], set[str]] = defaultdict(set)

    def look(self) -> set[tuple[str, str]]:
        """The children that are new since the last look."""
        known = set(self.uids)
        for plural in CHILDREN:
            for found in self._scene.items(plural):
                name = found["metadata"]["name"]
                if name == DENY_POLICY or name.startswith(self._scene.name):
                    self.uids[plural, name].add(found["metadata"]["uid"])
        return set(self.uids) - known

    def assert_each_once(self) -> None:
        """One object of each name, one run, and no other Jobs than prepare's, publish's and KubeRay's submitter."""
        assert {key: len(uids) for key, uids in self.uids.items() if len(uids) > 1} == {}
        name = self._scene.name
        assert {each for plural, each in self.uids if plural == "rayjobs"} == {f"{name}-1"}
        jobs = {each for plural, each in self.uids if plural == "jobs"}
        assert jobs == {f"{name}-prepare", f"{name}-1", f"{name}-publish"}
        assert len([each for plural, each in self.uids if plural == "rayclusters"]) == 1


def goes_by_itself(scene: Scene) -> None:
    """Everything that the job waits for happens as soon as it can."""
    scene.prepare_succeeds()
    scene.ray_says("SUCCEEDED")
    scene.step_ends("submitter", Ended(0))
    scene.publish_succeeds()
    scene.apply()


def is_complete(scene: Scene) -> bool:
    return bool(scene.status.get("phase") == "Complete")


def assert_complete_at_the_first_attempt(scene: Scene) -> None:
    status = scene.wait_for("Complete")
    assert [attempt["reason"] for attempt in status["attempts"]] == ["Complete"]
    assert (status["attempt"], status.get("retries", 0)) == (1, 0)
    holds = {kind for kind, (value, _) in scene.conditions().items() if value == "True"}
    assert {"Accepted", "Prepared", "Published", "Complete"} <= holds
    assert "Failed" not in holds


@pytest.mark.timeout(600)
def test_an_operator_killed_whenever_something_is_new_ends_where_others_end(scene: Scene) -> None:
    seen, kills = Sightings(scene), 0
    goes_by_itself(scene)

    def complete() -> bool:
        nonlocal kills
        if seen.look():
            scene.operator.kill()
            scene.operator.start()
            kills += 1
        return is_complete(scene)

    wait_until(complete, "a complete job", 4 * TIMEOUT_S)
    assert kills >= 4
    assert_complete_at_the_first_attempt(scene)
    seen.look()
    seen.assert_each_once()


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
def test_many_jobs_survive_random_kills(new_scene: Callable[[], Scene]) -> None:
    """Twelve jobs at once, an operator that lives for a few seconds at a time, one restart of the API server."""
    chance = random.Random(4)
    scenes = [new_scene() for _ in range(12)]
    seen = {scene.namespace: Sightings(scene) for scene in scenes}
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
        end = time.monotonic() + chance.uniform(1, 6)
        while time.monotonic() < end:
            for scene in scenes:
                seen[scene.namespace].look()
    for scene in scenes:
        assert_complete_at_the_first_attempt(scene)
        seen[scene.namespace].look()
        seen[scene.namespace].assert_each_once()
