"""Suspend, hold and delete at every phase, a run that another one had trained, a store that is silent for a while.

The jobs of a test go through their lives side by side, each in a namespace of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from cloister_api.events import FailureSeen, Progress
from cloister_api.reasons import FailureReason
from cluster.control_plane.access import wait_until
from cluster.control_plane.api import Object
from cluster.edges.pod_status import Ended, Waiting
from cluster.operator_jobs import DENY_POLICY, Scene, failed, succeeded
from support.operator_values import OUTPUT, PLAN, PREPARED, PROOF

pytest_plugins = ["cluster.operator_fixtures"]
pytestmark = pytest.mark.usefixtures("large_node")

NewScene = Callable[[], Scene]
PROGRESS = Progress(step=8, total_steps=9, epoch=1, loss=1.5, learning_rate=1e-4, tokens_per_second=9, eta_seconds=60)
PAUSE_S = 90
"""Longer than the pauses of a job that was refused something a few times."""


@dataclass(frozen=True)
class Place:
    """A point in a job's life: how it comes there and stays, and what its status says."""

    begin: Callable[[Scene], Any]
    phase: str
    reason: str | None = None
    pods: bool = False
    """Whether pods work for it there."""


def suspended(scene: Scene) -> None:
    scene.apply({"spec.suspend": True})


def held(scene: Scene) -> None:
    scene.prepare_succeeds()
    scene.apply({"spec.hold": "BeforeTraining"})


def starting(scene: Scene) -> None:
    scene.prepare_succeeds()
    scene.step_ends("head", Waiting("ContainerCreating"))
    scene.apply()


def backing_off(scene: Scene) -> None:
    scene.prepare_succeeds()
    scene.step_ends("submitter", Ended(0))
    scene.ray_says("STOPPED")
    scene.apply()


def training(scene: Scene) -> None:
    scene.prepare_succeeds()
    scene.ray_says("RUNNING")
    scene.apply()


def publishing(scene: Scene) -> None:
    scene.prepare_succeeds()
    scene.step_ends("submitter", Ended(0))
    scene.ray_says("SUCCEEDED")
    scene.apply()


def complete(scene: Scene) -> None:
    scene.publish_succeeds()
    publishing(scene)


def refused(scene: Scene) -> None:
    scene.step_ends("prepare", failed("DatasetInvalid"))
    scene.apply()


PLACES = {
    "suspended": Place(suspended, "Suspended", "Suspended"),
    "preparing": Place(Scene.apply, "Preparing", pods=True),
    "held": Place(held, "Held", "Held"),
    "starting": Place(starting, "Queued", "Starting", pods=True),
    "backing off": Place(backing_off, "Queued", "BackingOff"),
    "training": Place(training, "Training", pods=True),
    "publishing": Place(publishing, "Publishing", pods=True),
    "complete": Place(complete, "Complete"),
    "failed": Place(refused, "Failed", "DatasetInvalid"),
}


def at(new_scene: NewScene, names: Iterable[str]) -> dict[str, Scene]:
    """Jobs at these places of their lives. A pause lasts a few seconds, so whoever is in it comes there last."""
    scenes = {name: new_scene() for name in sorted(names, key="backing off".__eq__)}
    for name, scene in scenes.items():
        if name != "backing off":
            PLACES[name].begin(scene)
    for name, scene in scenes.items():
        if name == "backing off":
            PLACES[name].begin(scene)
        scene.wait_for(PLACES[name].phase, PLACES[name].reason)
        if name == "starting":
            wait_until(lambda scene=scene: scene.pods("head"), "a head")  # type: ignore[misc]
    return scenes


def working(scene: Scene) -> list[Object]:
    """What takes room in the cluster for the job."""
    pods = [pod for pod in scene.items("pods") if pod.get("status", {}).get("phase") in ("Pending", "Running")]
    return pods + scene.items("rayjobs")


def looked_at(scene: Scene, **spec: Any) -> Object:
    """The status, once the operator has seen this change of the spec."""
    scene.edit(**spec)
    generation = scene.job["metadata"]["generation"]
    return scene.wait_until(lambda status: status.get("observedGeneration") == generation, "a look at the change")


def test_deleted_anywhere_a_job_leaves_nothing_and_its_pods_are_guarded_to_the_last(new_scene: NewScene) -> None:
    scenes = at(new_scene, PLACES)
    for scene in scenes.values():
        scene.kubelet.linger(scene.namespace)
    for scene in scenes.values():
        scene.delete()
    for name, scene in scenes.items():
        wait_until(lambda scene=scene: not scene.exists, f"the end of the job that was {name}")  # type: ignore[misc]
    for name, scene in scenes.items():
        if PLACES[name].pods:
            assert scene.items("pods"), name
        if scene.items("pods"):
            assert DENY_POLICY in scene.names("networkpolicies"), name
    for scene in scenes.values():
        scene.kubelet.let_go(scene.namespace)
    for scene in scenes.values():
        scene.wait_until_gone()


def test_suspended_anywhere_before_publishing_it_stops_and_goes_on(new_scene: NewScene) -> None:
    scenes = at(new_scene, ("preparing", "held", "starting", "backing off", "training"))
    for scene in scenes.values():
        scene.edit(suspend=True)
    for name, scene in scenes.items():
        scene.wait_for("Suspended", "Suspended")
        assert scene.conditions()["Suspended"] == ("True", "Suspended"), name
    for name, scene in scenes.items():
        wait_until(lambda scene=scene: not working(scene), f"the end of what worked while it was {name}")  # type: ignore[misc]
    for scene in scenes.values():
        scene.prepare_succeeds()
        for role in ("head", "submitter"):
            scene.runs(role)
        for attempt in (1, 2):
            scene.ray_says("RUNNING", attempt=attempt)
        scene.edit(suspend=False)
    scenes["held"].wait_for("Held", "Held")
    scenes["held"].edit(hold=None)
    attempts = {"preparing": 1, "held": 1, "starting": 2, "backing off": 2, "training": 2}
    for name, scene in scenes.items():
        status = scene.wait_for("Training")
        assert status["attempt"] == attempts[name], name
        assert status.get("retries", 0) == (1 if name == "backing off" else 0), name
        assert scene.conditions()["Suspended"] == ("False", "Resumed"), name
        assert scene.names("rayjobs") == [f"contracts-{attempts[name]}"], name


def test_suspended_when_its_adapter_is_trained_or_it_has_ended_nothing_changes(new_scene: NewScene) -> None:
    scenes = at(new_scene, ("publishing", "complete", "failed"))
    for name, scene in scenes.items():
        before = scene.status
        status = looked_at(scene, suspend=True) if name == "publishing" else scene.status
        assert (status["phase"], status.get("reason")) == (before["phase"], before.get("reason")), name
    scenes["publishing"].publish_succeeds()
    scenes["publishing"].wait_for("Complete")
    assert "Suspended" not in scenes["publishing"].conditions()


def test_a_hold_keeps_a_job_that_has_not_begun_to_train_and_no_other(new_scene: NewScene) -> None:
    scenes = at(new_scene, ("suspended", "preparing", "backing off", "training"))
    for scene in scenes.values():
        looked_at(scene, hold="BeforeTraining")
    scenes["suspended"].edit(suspend=False)
    for name in ("suspended", "preparing"):
        scenes[name].prepare_succeeds()
        status = scenes[name].wait_for("Held", "Held")
        assert (status["plan"], scenes[name].names("rayjobs")) == (PLAN, [])
        scenes[name].ray_says("RUNNING")
        scenes[name].edit(hold="None")
        scenes[name].wait_for("Training")
    assert scenes["training"].status["phase"] == "Training"
    scenes["backing off"].runs("submitter")
    scenes["backing off"].ray_says("RUNNING", attempt=2)
    assert scenes["backing off"].wait_for("Training")["attempt"] == 2


def test_what_another_run_has_trained_is_published_without_a_gpu(new_scene: NewScene) -> None:
    """resumeFrom of a run that had trained to its end; a job that is held publishes when it is let."""
    scenes = {hold: new_scene() for hold in ("None", "BeforeTraining")}
    for hold, scene in scenes.items():
        scene.step_ends("prepare", succeeded({**PREPARED, "staged": True}))
        uri = f"s3://adapters/{scene.namespace}/runs/u"
        scene.apply({"spec.resumeFrom": {"uri": uri}, "spec.hold": hold})
    scenes["BeforeTraining"].wait_for("Held", "Held")
    assert scenes["BeforeTraining"].names("jobs") == ["contracts-prepare"]
    scenes["BeforeTraining"].edit(hold="None")
    for scene in scenes.values():
        scene.publish_succeeds()
        status = scene.wait_for("Complete")
        assert scene.conditions()["Prepared"] == ("True", "AlreadyTrained")
        assert (status.get("attempts"), status.get("attempt"), scene.names("rayjobs")) == (None, None, [])


def test_resumed_from_a_run_that_was_not_finished_it_trains(scene: Scene) -> None:
    uri = f"s3://adapters/{scene.namespace}/runs/u"
    scene.training({"spec.resumeFrom": {"uri": uri}})
    (run_file,) = [each for each in scene.items("configmaps") if each["metadata"]["name"] == "contracts-run"]
    assert json.loads(run_file["data"]["run.json"])["spec"]["resumeFrom"] == {"uri": uri}


def test_an_adapter_that_was_there_is_taken_over(scene: Scene) -> None:
    scene.step_ends("prepare", succeeded({"reused": OUTPUT, "egress": PROOF}))
    scene.apply({"spec.output.ifExists": "Reuse"})
    status = scene.wait_for("Complete", "AlreadyPublished")
    assert (status["output"], scene.names("rayjobs")) == (OUTPUT, [])


@pytest.fixture(scope="module", autouse=True)
def silent(new_scene: NewScene) -> tuple[Scene, Scene]:
    """Jobs whose store is silent, before training and in it: the pause is long, so that the other tests fill it."""
    early, late = new_scene(), new_scene()
    early.step_ends("prepare", failed("StorageUnavailable"))
    early.apply({"spec.backoffLimit": 0})
    late.training({"spec.backoffLimit": 0})
    silent = FailureSeen(reason=FailureReason.STORAGE_UNAVAILABLE, message="No answer.", step=7, node="gpu-0")
    late.ray_says("RUNNING", attempt=2)
    late.ray_ends("FAILED", f"Job entrypoint command failed, last available logs:\n{late.line(silent)}\n")
    for scene, phase in ((early, "Preparing"), (late, "Queued")):
        status = scene.wait_for(phase, "StorageUnavailable", "the job goes on by itself")
        assert status["storageUnavailableSince"]
    early.prepare_succeeds()
    early.ray_says("RUNNING")
    return early, late


def test_a_silent_store_is_waited_for_without_counting(silent: tuple[Scene, Scene]) -> None:
    """No retry is allowed, and none is used up. This test is the last of its module."""
    early, late = silent
    for scene, attempt in ((early, 1), (late, 2)):
        status = scene.wait_until(
            lambda status, attempt=attempt: (status["phase"], status.get("attempt")) == ("Training", attempt),  # type: ignore[misc]
            f"attempt {attempt}",
            PAUSE_S,
        )
        assert status.get("retries", 0) == 0
    late.driver_says(PROGRESS, attempt=2)
    for scene in (early, late):
        scene.wait_until(lambda status: "storageUnavailableSince" not in status, "the silence to be over")
