"""What a job's owner does to it, on the real API: suspend, hold, delete; its time limits; an operator that was away."""

from __future__ import annotations

from typing import Any

from cluster.control_plane.access import wait_until
from cluster.operator_jobs import DENY_POLICY, Scene, failed
from cluster.operator_stories import goes_by_itself

pytest_plugins = ["cluster.operator_fixtures"]


def has_ended(scene: Scene, plural: str, name: str) -> bool:
    """Whether a Job or RayJob says that it is over."""
    (found,) = [each for each in scene.items(plural) if each["metadata"]["name"] == name]
    status: dict[str, Any] = found.get("status", {})
    over = {"Complete", "Failed"}
    conditions = {each["type"] for each in status.get("conditions", []) if each["status"] == "True"}
    return bool(over & {status.get("jobDeploymentStatus"), *conditions})


def test_a_job_can_be_born_suspended(scene: Scene) -> None:
    scene.apply({"spec.suspend": True})
    status = scene.wait_for("Suspended", "Suspended", "Set spec.suspend to false to go on.")
    assert (scene.names("jobs"), status.get("attempt")) == ([], None)
    wait_until(lambda: DENY_POLICY in scene.names("networkpolicies"), "what guards the pods, before there are any")
    scene.edit(suspend=False)
    scene.running("prepare")
    assert scene.conditions()["Suspended"] == ("False", "Resumed")


def test_suspended_while_preparing_it_prepares_anew(scene: Scene) -> None:
    scene.preparing()
    (before,) = scene.items("jobs")
    scene.edit(suspend=True)
    scene.wait_for("Suspended", "Suspended")
    wait_until(lambda: not scene.items("jobs") and not scene.items("pods"), "prepare's end")
    scene.edit(suspend=False)
    scene.running("prepare")
    (after,) = scene.items("jobs")
    assert after["metadata"]["name"] == before["metadata"]["name"]
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    scene.prepare_succeeds()
    scene.ray_says("RUNNING")
    status = scene.wait_for("Training")
    assert (status["attempt"], status.get("retries", 0)) == (1, 0)


def test_suspended_while_training_it_goes_on_as_the_next_attempt_when_all_pods_are_gone(scene: Scene) -> None:
    scene.training()
    with scene.pods_linger():
        scene.edit(suspend=True)
        status = scene.wait_for("Suspended", "Suspended")
        assert [attempt["reason"] for attempt in status["attempts"]] == ["Suspended"]
        scene.edit(suspend=False)
        scene.wait_for("Queued", "Starting", "The pods of contracts-1 end before the next attempt starts.")
        assert scene.names("rayjobs") == ["contracts-1"]
    scene.ray_says("RUNNING", attempt=2)
    status = scene.wait_for("Training")
    assert scene.names("rayjobs") == ["contracts-2"]
    assert (status["attempt"], status.get("retries", 0)) == (2, 0)
    assert scene.conditions()["Suspended"] == ("False", "Resumed")


def test_policies_that_somebody_deletes_or_changes_are_made_right(scene: Scene) -> None:
    scene.training()
    wanted = {each["metadata"]["name"]: each["spec"] for each in scene.items("networkpolicies")}
    assert set(wanted) == {DENY_POLICY, scene.name}
    path = f"/apis/networking.k8s.io/v1/namespaces/{scene.namespace}/networkpolicies"

    def are_right() -> bool:
        return {each["metadata"]["name"]: each["spec"] for each in scene.items("networkpolicies")} == wanted

    for name in wanted:
        scene.plane.api.delete(f"{path}/{name}")
    wait_until(are_right, "new policies")
    changed = scene.plane.api.patch(f"{path}/{scene.name}", {"spec": {"egress": [{}]}})
    assert changed["spec"] != wanted[scene.name]
    wait_until(are_right, "the policy as it was")
    assert scene.status["phase"] == "Training"


def test_a_new_job_of_a_deleted_one_s_name_starts_from_the_beginning(scene: Scene) -> None:
    scene.training()
    old = scene.job["metadata"]["uid"]
    with scene.pods_linger():
        scene.delete()
        wait_until(lambda: not scene.exists, "the job's end")
        scene.kubelet.order(failed("DatasetInvalid"), scene.namespace, role="prepare")
        scene.apply()
        scene.wait_until(lambda status: status.get("phase") in ("Pending", "Preparing"), "a first look at the new job")
    status = scene.wait_for("Failed", "DatasetInvalid")
    assert "attempts" not in status
    assert scene.job["metadata"]["uid"] != old


def test_a_finished_job_is_deleted_when_its_time_is_over(scene: Scene) -> None:
    goes_by_itself(scene)
    scene.wait_for("Complete")
    scene.edit(ttlSecondsAfterFinished=1)
    scene.wait_until_gone()


def test_preparing_and_training_may_take_so_long_in_all(scene: Scene) -> None:
    scene.training({"spec.activeDeadlineSeconds": 3600})
    scene.wait_until(lambda status: "activeSince" in status, "the clock")
    scene.edit(activeDeadlineSeconds=1)
    status = scene.wait_for("Failed", "DeadlineExceeded", "spec.activeDeadlineSeconds is 1")
    assert [attempt["reason"] for attempt in status["attempts"]] == ["DeadlineExceeded"]
    wait_until(lambda: scene.names("rayjobs") == [], "the run's end")


def test_results_wait_for_an_operator_that_is_away(scene: Scene) -> None:
    scene.preparing()
    scene.operator.kill()
    scene.prepare_succeeds()
    wait_until(lambda: has_ended(scene, "jobs", "contracts-prepare"), "prepare's end")
    scene.ray_says("RUNNING")
    scene.operator.start()
    scene.wait_for("Training")

    scene.operator.kill()
    scene.ray_ends("SUCCEEDED")
    wait_until(lambda: has_ended(scene, "rayjobs", "contracts-1"), "the run's end")
    scene.operator.start()
    scene.running("publish")

    scene.operator.stop()
    scene.publish_succeeds()
    wait_until(lambda: has_ended(scene, "jobs", "contracts-publish"), "publish's end")
    scene.operator.start()
    status = scene.wait_for("Complete")
    assert [attempt["reason"] for attempt in status["attempts"]] == ["Complete"]
    assert status["plan"]["totalSteps"] == 120
