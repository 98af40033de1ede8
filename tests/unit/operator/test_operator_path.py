"""The way of a job through its phases, on a small cluster in memory."""

from __future__ import annotations

import json

from cloister_api.events import CheckpointSaved, Done, EvaluationDone, Progress
from cloister_operator.names import Step
from support.operator_values import OUTPUT, PREPARED, PUBLISHED
from support.operator_world import World


def test_an_adapter_that_the_run_in_resume_from_trained_is_published_without_a_gpu() -> None:
    world = World({"spec.resumeFrom": {"uri": "s3://cloister-runs/legal/earlier"}})
    world.settle()
    world.succeed(Step.PREPARE, {**PREPARED, "staged": True})
    assert world.settle().phase == "Publishing"
    assert world.conditions()["Prepared"] == ("True", "AlreadyTrained")
    assert not list(world.ray_jobs())
    world.succeed(Step.PUBLISH, PUBLISHED)
    assert world.settle().phase == "Complete"


def test_an_adapter_that_was_trained_before_is_held_and_suspended_like_any_other() -> None:
    world = World({"spec.resumeFrom": {"uri": "s3://cloister-runs/legal/earlier"}, "spec.hold": "BeforeTraining"})
    world.settle()
    world.succeed(Step.PREPARE, {**PREPARED, "staged": True})
    assert world.settle().phase == "Held"
    world.change("suspend", True)
    world.change("hold", "None")
    assert world.settle().phase == "Suspended"
    assert not world.find("RayJob") and "Job contracts-publish" not in world.made
    world.change("suspend", False)
    assert world.settle().phase == "Publishing"


def progress(step: int = 12) -> Progress:
    return Progress(
        step=step, total_steps=120, epoch=0.3, loss=1.23456, learning_rate=2e-4, tokens_per_second=9000, eta_seconds=90
    )


def test_a_job_goes_through_all_phases_to_a_published_adapter() -> None:
    world = World({"spec.distribution": {"workers": 2, "gpusPerWorker": 4}})
    assert world.settle().phase == "Preparing"
    assert world.made == [
        "NetworkPolicy cloister-default-deny",
        "NetworkPolicy contracts",
        "ConfigMap contracts-run",
        "Job contracts-prepare",
    ]
    assert world.conditions()["Accepted"] == ("True", "Accepted")
    assert world.status.resolved and world.status.resolved["storage"]["runUri"] == "s3://cloister-runs/legal"
    assert world.status.message is None

    world.succeed(Step.PREPARE, PREPARED)
    assert world.settle().phase == "Queued"
    assert world.conditions()["Prepared"] == ("True", "Prepared")
    assert world.conditions()["EgressRestricted"] == ("True", "Enforced")
    assert world.conditions()["Reconciling"][0] == "False"
    assert world.status.plan and world.status.plan.total_steps == 120
    assert world.status.attempt == 1

    world.running()
    world.say(progress())
    world.say(EvaluationDone(step=12, loss=1.1, base_loss=1.5))
    world.say(CheckpointSaved(step=12, uri="s3://cloister-runs/legal/u/checkpoints/step-000012"))
    status = world.settle()
    assert (status.phase, status.reason, status.message) == ("Training", None, None)
    assert status.progress and (status.progress.summary, status.progress.loss) == ("10%", 1.2346)
    assert status.checkpoint and status.checkpoint.step == 12
    assert world.conditions()["Running"] == ("True", "Training")

    world.pass_time(seconds=100)
    world.say(Done(step=120, staged_uri="s3://cloister-runs/legal/u/adapter"))
    world.ray("SUCCEEDED")
    status = world.settle()
    assert status.phase == "Publishing"
    assert status.gpu_seconds == 800
    assert [(one.number, one.reason, one.gpu_seconds) for one in status.attempts or []] == [(1, "Complete", 800)]

    world.succeed(Step.PUBLISH, {**PUBLISHED, "trained": {"step": 120, "totalSteps": 120, "loss": 0.25}})
    status = world.settle()
    assert status.phase == "Complete"
    assert status.output and status.output.to_api() == OUTPUT
    shown = status.progress
    assert shown and (shown.step, shown.summary, shown.loss, shown.eta) == (120, "100%", 0.25, "0s"), "no log said so"
    assert world.conditions()["Complete"] == ("True", "Complete")
    assert "Failed" not in world.conditions()
    assert world.made[-2:] == ["RayJob contracts-1", "Job contracts-publish"]


def test_a_job_whose_adapter_was_made_before_needs_no_gpu() -> None:
    world = World()
    world.settle()
    evaluation = {"baseLoss": 1.5, "loss": 0.5, "gate": "None"}
    world.succeed(Step.PREPARE, {"reused": OUTPUT, "message": "It is there.", "evaluation": evaluation, "egress": {}})
    status = world.settle()
    assert (status.phase, status.reason) == ("Complete", "AlreadyPublished")
    assert "It is there." in (status.message or "")
    assert not world.find("RayJob")


def test_status_is_quiet_when_nothing_happens() -> None:
    world = World()
    world.prepared()
    world.running()
    world.say(progress())
    world.settle()
    before = json.dumps(world.job)
    for _ in range(5):
        world.pass_time(seconds=30)
        assert not world.step().events
        assert json.dumps(world.job) == before
