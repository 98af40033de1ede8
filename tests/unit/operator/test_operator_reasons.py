"""Every reason of the enum, from the evidence that gives it; in every state a message that says the next step."""

from __future__ import annotations

from datetime import timedelta

import pytest

from cloister_api.events import CheckpointSaved, FailureSeen
from cloister_api.reasons import ConditionReason, FailureReason
from cloister_operator.decide.messages import NEXT_STEPS
from support.operator_cases import CASES, SAID_BY_THE_DRIVER_RETRIED, Case
from support.operator_plays import driver_said, preparing
from support.operator_values import START
from support.operator_world import World


@pytest.mark.parametrize("case", CASES, ids=str)
def test_evidence_leads_to_a_phase_a_reason_and_the_next_step(case: Case) -> None:
    world = World()
    case.play(world)
    status = world.step().status
    assert (status.phase, status.reason) == (case.phase, case.reason), status.message
    assert case.words in (status.message or "")
    assert next_step(case.reason) in (status.message or "")
    if case.phase == "Failed":
        assert status.failure and status.failure.reason == case.reason
        assert world.conditions()["Failed"] == world.conditions()["Stalled"] == ("True", case.reason)
        assert "Complete" not in world.conditions()


def next_step(reason: str) -> str:
    if reason in FailureReason._value2member_map_:
        return FailureReason(reason).facts.action
    return NEXT_STEPS[ConditionReason(reason)]


def test_events_are_looked_for_while_no_pod_runs() -> None:
    world = World()
    job = preparing(world)
    for age, pause in ((0, 2), (30, 30), (3600, 60)):
        world.now = START + timedelta(seconds=age)
        assert world.decide().again_at == world.now + timedelta(seconds=pause)
    world.pod(job, "prepare")
    assert world.decide().again_at is None


def test_the_table_has_every_reason() -> None:
    reasons = {case.reason for case in CASES} | set(SAID_BY_THE_DRIVER_RETRIED)
    assert {reason.value for reason in FailureReason} - reasons == set()
    assert {reason.value for reason in NEXT_STEPS} - reasons - {"Preparing"} == set()


@pytest.mark.parametrize("reason", SAID_BY_THE_DRIVER_RETRIED)
def test_a_reason_that_comes_back_without_a_newer_checkpoint_ends_the_job(reason: str) -> None:
    world = World({"spec.backoffLimit": 1})
    driver_said(reason)(world)
    world.settle()
    world.pass_time(minutes=10)
    world.settle()
    driver_again = world.line(FailureSeen(reason=FailureReason(reason), message="Again.", step=7, node="n"))
    world.ray("FAILED", "Failed", reason="AppFailed", message=driver_again)
    status = world.settle()
    assert (status.phase, status.reason, status.retries, status.attempt) == ("Failed", reason, 2, 2)
    assert "backoffLimit is 1" in (status.message or "")


def test_a_failed_job_with_a_checkpoint_says_how_to_go_on() -> None:
    world = World()
    world.prepared()
    world.running()
    world.say(CheckpointSaved(step=40, uri="s3://cloister-runs/legal/u/checkpoints/step-000040"))
    world.settle()
    message = world.line(FailureSeen(reason=FailureReason.LOSS_DIVERGED, message="NaN.", step=41, node="n"))
    world.ray("FAILED", "Failed", reason="AppFailed", message=message)
    assert "resumeFrom: {uri: s3://cloister-runs/legal/u}" in (world.settle().message or "")
