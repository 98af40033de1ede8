"""Attempts: retries and pauses, suspend and resume, Kueue's evictions, KubeRay's false failures, the ends of a job."""

from __future__ import annotations

import pytest

from cloister_api.events import CheckpointSaved, Done, FailureSeen, Progress
from cloister_api.reasons import FailureReason
from cloister_operator.decide.namespace import unneeded_policy
from cloister_operator.names import Step
from support.operator_values import PREPARED, PUBLISHED, START, stamp
from support.operator_world import World

GRACE = "JobDeploymentStatusTransitionGracePeriodExceeded"
NOT_FOUND = "Submitter completed but Ray job not found in RayCluster."


def training(changes: dict[str, object] | None = None) -> World:
    world = World(changes)
    world.prepared()
    world.running()
    world.settle()
    assert world.status.phase == "Training"
    return world


def fails(world: World, reason: str = "NodeLost") -> None:
    line = world.line(FailureSeen(reason=FailureReason(reason), message="Gone.", step=1, node="node-7"))
    world.ray("FAILED", "Failed", reason="AppFailed", message=line)


def saves(world: World, step: int) -> None:
    world.say(CheckpointSaved(step=step, uri=f"s3://cloister-runs/legal/u/checkpoints/step-{step:06d}"))


def next_attempt(world: World) -> None:
    world.settle()
    world.pass_time(minutes=10)
    world.settle()
    world.running()
    world.settle()


def test_attempts_without_a_newer_checkpoint_are_counted_and_others_are_not() -> None:
    world = training({"spec.backoffLimit": 1})
    for saved in (10, 20, 30):
        saves(world, saved)
        world.settle()
        fails(world)
        next_attempt(world)
        assert world.status.retries == 0
    saves(world, 30)
    fails(world)
    next_attempt(world)
    assert world.status.retries == 1
    fails(world)
    status = world.settle()
    assert (status.phase, status.reason, status.attempt) == ("Failed", "NodeLost", 5)
    assert [one.checkpoint_step for one in status.attempts or []] == [10, 20, 30, None, None]


def test_the_next_attempt_waits_longer_each_time() -> None:
    world = training({"spec.backoffLimit": 10})
    for pause in (10, 20, 40, 80):
        fails(world)
        status = world.settle()
        assert (status.phase, status.reason) == ("Queued", "BackingOff")
        number = status.attempt or 0
        assert f"Attempt {number + 1} starts at" in (status.message or "")
        world.pass_time(seconds=pause - 1)
        assert world.settle().attempt == number
        world.pass_time(seconds=1)
        assert world.settle().attempt == number + 1
        world.running()
        world.settle()


def test_the_next_attempt_waits_until_the_one_before_and_its_pods_are_gone() -> None:
    world = training()
    fails(world)
    world.step()
    world.pass_time(minutes=10)
    assert world.step().status.reason == "Starting"
    assert "contracts-1" in (world.status.message or "")
    assert not list(world.ray_jobs())
    world.collect()
    assert world.settle().attempt == 2


@pytest.mark.parametrize("done", [True, False])
def test_a_false_failure_is_judged_by_publish_or_tried_again_without_counting(done: bool) -> None:
    world = training({"spec.backoffLimit": 0})
    if done:
        world.say(Done(step=120, staged_uri="s3://cloister-runs/legal/u/adapter"))
    world.ray("FAILED", "Failed", reason=GRACE, message="KubeRay waited 30 s.")
    status = world.settle()
    if done:
        assert status.phase == "Publishing"
    else:
        assert (status.phase, status.reason, status.retries) == ("Queued", "BackingOff", 0)


@pytest.mark.parametrize(
    ("began", "status", "counted"),
    [
        (True, {"deployment": "Failed", "reason": "SubmissionFailed"}, False),
        (False, {"deployment": "Failed", "reason": "SubmissionFailed"}, True),
        (True, {"deployment": "Failed", "reason": "AppFailed", "message": NOT_FOUND}, False),
        (True, {"job_status": "RUNNING", "deployment": "Failed", "reason": "AppFailed", "message": NOT_FOUND}, False),
        (True, {"job_status": "FAILED", "deployment": "Failed", "reason": "AppFailed", "message": NOT_FOUND}, True),
        (True, {"job_status": "STOPPED", "deployment": "Complete"}, True),
        (False, {"deployment": "ValidationFailed", "reason": "ValidationFailed", "message": "no such field"}, True),
    ],
)  # fmt: skip
def test_which_ends_count(began: bool, status: dict[str, str], counted: bool) -> None:
    world = training() if began else World()
    if not began:
        world.prepared()
    world.ray(**{"job_status": "", **status})
    assert (world.settle().reason, world.status.retries) == ("BackingOff", int(counted))


def test_success_stays_success_whatever_kuberay_writes_over_it() -> None:
    world = training()
    world.ray("SUCCEEDED", "Complete", reason=GRACE, message="overwritten")
    assert world.settle().phase == "Publishing"


def test_a_lost_head_is_a_restart_of_the_same_attempt() -> None:
    world = training()
    for pod in world.find("Pod"):
        if pod["metadata"]["labels"]["ray.io/node-type"] == "head":
            pod["metadata"]["deletionTimestamp"] = stamp(world.now)
    status = world.step().status
    assert (status.phase, status.attempt, (status.attempts or [])[0].restarts) == ("Queued", 1, 1)
    world.collect()
    world.running()
    status = world.settle()
    assert (status.phase, status.attempt, status.retries) == ("Training", 1, 0)
    assert (status.attempts or [])[0].restarts == 1


def test_an_eviction_keeps_the_attempt_and_frees_its_gpus() -> None:
    world = training({"spec.distribution": {"workers": 2, "gpusPerWorker": 4}})
    world.pass_time(seconds=50)
    world.ray_job["spec"]["suspend"] = True
    world.ray("", "Suspended")
    for pod in world.find("Pod"):
        pod["metadata"]["deletionTimestamp"] = stamp(world.now)
    status = world.step().status
    assert (status.phase, status.reason, status.attempt, status.gpu_seconds) == ("Queued", "Evicted", 1, 400)
    world.collect()
    world.pass_time(hours=2)
    world.settle()
    world.ray_job["spec"]["suspend"] = False
    world.running()
    status = world.settle()
    assert (status.phase, status.attempt, status.gpu_seconds) == ("Training", 1, 400)
    assert (status.attempts or [])[0].restarts == 1


def test_suspend_and_resume_in_every_phase() -> None:
    world = World()
    world.settle()
    world.change("suspend", True)
    assert world.settle().phase == "Suspended"
    assert not world.find("Job")
    world.change("suspend", False)
    assert world.settle().phase == "Preparing"
    assert world.conditions()["Suspended"] == ("False", "Resumed")

    world.succeed(Step.PREPARE, PREPARED)
    world.change("suspend", True)
    assert world.settle().phase == "Suspended"
    assert world.conditions()["Prepared"][0] == "True"
    world.change("suspend", False)
    world.settle()
    world.running()
    assert world.settle().phase == "Training"

    world.change("suspend", True)
    assert world.settle().phase == "Suspended"
    assert not world.find("RayJob")
    world.change("suspend", False)
    status = world.settle()
    assert (status.attempt, status.retries) == (2, 0)
    assert (status.attempts or [])[0].reason == "Suspended"

    world.ray("SUCCEEDED")
    world.change("suspend", True)
    assert world.settle().phase == "Publishing"
    world.succeed(Step.PUBLISH, PUBLISHED)
    assert world.settle().phase == "Complete"


def test_a_suspended_rayjob_is_never_written() -> None:
    """Suspending a child is Kueue's; ours is to delete."""
    world = training()
    world.change("suspend", True)
    assert [action for action in world.decide().actions if "suspend" in str(action)] == []


def test_a_hold_stops_before_the_first_attempt_only() -> None:
    world = World({"spec.hold": "BeforeTraining"})
    world.prepared()
    assert world.status.phase == "Held"
    world.change("hold", "None")
    assert world.settle().phase == "Queued"
    world.change("hold", "BeforeTraining")
    fails(world)
    next_attempt(world)
    assert (world.status.phase, world.status.attempt) == ("Training", 2)


def test_a_silent_store_is_waited_for_without_counting() -> None:
    world = training({"spec.backoffLimit": 0})
    for _ in range(5):
        fails(world, "StorageUnavailable")
        status = world.settle()
        assert (status.phase, status.reason, status.retries) == ("Queued", "StorageUnavailable", 0)
        next_attempt(world)
    assert world.status.storage_unavailable_since
    world.say(Progress(step=1, total_steps=9, epoch=0, loss=1, learning_rate=0, tokens_per_second=0, eta_seconds=0))
    assert world.settle().storage_unavailable_since is None


def test_the_deadline_counts_no_queueing() -> None:
    world = World({"spec.activeDeadlineSeconds": 300})
    world.settle()
    world.pod(world.step_job(Step.PREPARE), "prepare")
    world.settle()
    world.pass_time(seconds=100)
    world.objects = {key: found for key, found in world.objects.items() if key[0] != "Pod"}
    world.succeed(Step.PREPARE, PREPARED)
    world.settle()
    assert world.status.active_seconds == 100
    world.pass_time(hours=5)
    assert world.settle().phase == "Queued"
    world.running()
    world.settle()
    world.pass_time(seconds=199)
    decision = world.step()
    assert decision.status.phase == "Training"
    assert decision.again_at is not None and (decision.again_at - world.now).total_seconds() == 1
    world.pass_time(seconds=1)
    status = world.settle()
    assert (status.phase, status.reason, status.gpu_seconds) == ("Failed", "DeadlineExceeded", 200)
    assert not list(world.ray_jobs())


@pytest.mark.parametrize("end", ["Complete", "Failed"])
def test_an_ended_job_goes_when_its_time_is_over(end: str) -> None:
    world = World({"spec.ttlSecondsAfterFinished": 60})
    world.prepared()
    world.ray("SUCCEEDED")
    world.settle()
    if end == "Complete":
        world.succeed(Step.PUBLISH, PUBLISHED)
    else:
        world.refuse(Step.PUBLISH, "AdapterInvalid")
    assert world.settle().phase == end
    world.pass_time(seconds=59)
    world.settle()
    assert "deletionTimestamp" not in world.job["metadata"]
    world.pass_time(seconds=1)
    world.settle()
    assert "deletionTimestamp" in world.job["metadata"]


def test_nothing_is_made_or_written_for_a_job_that_is_being_deleted() -> None:
    for phase in range(3):
        world = World()
        if phase > 0:
            world.settle()
        if phase > 1:
            world.succeed(Step.PREPARE, PREPARED)
        world.job["metadata"]["deletionTimestamp"] = stamp(world.now)
        decision = world.decide()
        assert (decision.actions, decision.events) == ((), ())
        assert decision.status == world.status


def test_the_deny_policy_outlives_the_pods() -> None:
    world = World()
    world.settle()
    policies, pod = world.find("NetworkPolicy"), world.pod(world.step_job(Step.PREPARE), "prepare")
    pod["metadata"]["labels"]["cloister.dev/job"] = "contracts"
    assert unneeded_policy([world.job], [], policies) is None
    world.job["metadata"]["deletionTimestamp"] = stamp(world.now)
    assert unneeded_policy([world.job], [pod], policies) is None
    gone = unneeded_policy([world.job], [], policies)
    assert gone is not None and gone.name == "cloister-default-deny"


def test_policies_that_somebody_changes_are_put_back() -> None:
    world = World()
    world.settle()
    world.objects["NetworkPolicy", "contracts"]["spec"]["egress"] = [{}]
    del world.objects["NetworkPolicy", "cloister-default-deny"]
    world.settle()
    assert world.objects["NetworkPolicy", "contracts"]["spec"]["egress"] != [{}]
    assert ("NetworkPolicy", "cloister-default-deny") in world.objects


def test_a_stored_job_that_no_longer_parses_is_stalled_and_left_as_it_is() -> None:
    world = training()
    world.job["spec"]["added"] = 1
    status = world.settle()
    assert (status.phase, status.reason) == ("Training", "SpecInvalid")
    assert world.conditions()["Stalled"] == ("True", "SpecInvalid")
    assert list(world.ray_jobs())
    del world.job["spec"]["added"]
    assert world.settle().phase == "Training"
    assert world.conditions()["Stalled"][0] == "False"


def test_a_profile_that_is_gone_is_waited_for() -> None:
    world = World({"spec.distribution": {"profile": "default"}})
    world.settle()
    kept = world.settings
    world.settings = kept.model_copy(update={"profiles": {"other": kept.profiles["default"]}})
    world.succeed(Step.PREPARE, PREPARED)
    status = world.settle()
    assert (status.phase, status.reason) == ("Queued", "PolicyDenied")
    world.settings = kept
    assert world.settle().attempt == 1


def test_an_older_job_with_the_same_output_is_looked_at_first() -> None:
    world = World()
    first = {"name": "first", "namespace": "legal", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
    world.other_jobs = [{**world.job, "metadata": first}]
    assert world.settle().phase == "Pending"
    world.other_jobs[0]["status"] = {"startTime": stamp(START), "phase": "Failed"}
    assert world.settle().phase == "Preparing"
