"""Ways through a job's life that many tests take, and how they end."""

from __future__ import annotations

from cluster.chronicle import Chronicle
from cluster.edges.pod_status import Ended
from cluster.operator_jobs import DENY_POLICY, Scene


def goes_by_itself(scene: Scene) -> None:
    """Everything that the job waits for happens as soon as it can."""
    scene.prepare_succeeds()
    scene.ray_says("SUCCEEDED")
    scene.step_ends("submitter", Ended(0))
    scene.publish_succeeds()
    scene.apply()


def assert_complete_at_the_first_attempt(scene: Scene) -> None:
    """The job is published, and nothing was tried again."""
    status = scene.wait_for("Complete")
    assert [attempt["reason"] for attempt in status["attempts"]] == ["Complete"]
    assert (status["attempt"], status.get("retries", 0)) == (1, 0)
    holds = {kind for kind, (value, _) in scene.conditions().items() if value == "True"}
    assert {"Accepted", "Prepared", "Published", "Complete"} <= holds
    assert "Failed" not in holds


def children(chronicle: Chronicle, scene: Scene) -> dict[tuple[str, str], set[str]]:
    """By kind and name the UIDs of everything that was ever made for the job."""
    return chronicle.uids(scene.namespace, lambda name: name == DENY_POLICY or name.startswith(f"{scene.name}-"))


def assert_made_once(chronicle: Chronicle, scene: Scene) -> None:
    """One object of each name, one run, and no other Jobs than prepare's, publish's and KubeRay's submitter."""
    name, made = scene.name, children(chronicle, scene)
    assert {key: len(uids) for key, uids in made.items() if len(uids) > 1} == {}
    named = {kind: {each for plural, each in made if plural == kind} for kind in ("jobs", "rayjobs", "rayclusters")}
    assert named["rayjobs"] == {f"{name}-1"}
    assert named["jobs"] == {f"{name}-prepare", f"{name}-1", f"{name}-publish"}
    assert len(named["rayclusters"]) == 1
