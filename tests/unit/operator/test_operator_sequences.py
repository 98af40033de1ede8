"""Random sequences of what can happen to a job: whatever comes, the promises hold after every single decision."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from cloister_api.events import CheckpointSaved, Done, FailureSeen
from cloister_api.reasons import FailureReason
from cloister_operator.decide.actions import Create
from cloister_operator.names import Step
from support.operator_values import PREPARED, PUBLISHED
from support.operator_world import World

SEQUENCES = 200
LENGTH = 60
FINAL = ("Complete", "Failed")


class Story:
    """One job among people, KubeRay, Kueue, kubelets and an operator that is killed at any moment."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = World({"spec.backoffLimit": self.random.choice([0, 1, 3])})
        self.told: list[str] = []
        self.seen: dict[int, int] = {}
        """How often the RayJob of an attempt had been made when it was first seen."""

    def play(self) -> None:
        for _ in range(LENGTH):
            happening = self.random.choice(HAPPENINGS)
            self.told.append(happening.__name__)
            happening(self)
            self.check()
        for _ in range(10):
            self.decide_all()
            self.world.collect()
            self.check()

    def decide_all(self) -> None:
        """The operator comes to the end of a decision."""
        self.decide(lives_for=99)

    def decide(self, lives_for: int) -> None:
        """The operator decides, and is killed after so many writes."""
        world = self.world
        before = world.status
        decision = world.decide()
        writes: list[Callable[[], None]] = []
        if decision.status != before:
            writes.append(lambda: world.store(decision.status))
        for action in decision.actions:
            if isinstance(action, Create) and action.object["kind"] == "RayJob":
                assert world.status.attempt is not None or decision.status.attempt is not None
            writes.append(lambda action=action: world.act(action))  # type: ignore[misc]
        for write in writes[:lives_for]:
            write()
            self.check()
        if before.phase in FINAL:
            assert world.status == before or world.status.phase == before.phase, "an end is not final"

    def check(self) -> None:
        world, conditions = self.world, self.world.conditions()
        live = [job for job in world.find("RayJob") if job.get("status", {}).get("jobDeploymentStatus") not in ENDED]
        assert len(live) <= 1, "two live RayJobs"
        if world.find("RayJob"):
            assert conditions["Prepared"][0] == "True", "a GPU was taken before prepare had ended"
        assert not {"Complete", "Failed"} <= conditions.keys(), "complete and failed"
        status = world.status
        for attempt in status.attempts or []:
            made = world.made.count(f"RayJob contracts-{attempt.number}")
            if attempt.start is not None:
                assert self.seen.setdefault(attempt.number, made) == made, "an attempt's number was used twice"
        if status.phase in FINAL:
            assert (status.phase == "Complete") == (conditions.get("Complete", ("",))[0] == "True")
            assert status.completion_time
        elif status.phase and status.phase not in ("Pending", "Training", "Preparing", "Publishing"):
            assert status.message, f"{status.phase} says nothing"

    # what can happen

    def operator_decides(self) -> None:
        self.decide_all()

    def operator_is_killed(self) -> None:
        self.decide(lives_for=self.random.randrange(3))

    def objects_are_collected(self) -> None:
        self.world.collect()

    def time_passes(self) -> None:
        self.world.pass_time(seconds=self.random.choice([1, 30, 400, 4000]))

    def suspend_or_resume(self) -> None:
        self.world.change("suspend", self.random.random() < 0.5)

    def hold_or_release(self) -> None:
        self.world.change("hold", self.random.choice(["None", "BeforeTraining"]))

    def step_ends_well(self) -> None:
        for step, result in ((Step.PREPARE, PREPARED), (Step.PUBLISH, PUBLISHED)):
            if self._runs(step):
                self.world.succeed(step, result)

    def step_ends_badly(self) -> None:
        for step in Step:
            if self._runs(step):
                reason = self.random.choice(["StorageUnavailable", "Internal", "OutOfMemory"])
                self.world.refuse(step, reason, exit_code=12)

    def step_ends_without_a_word(self) -> None:
        for step in Step:
            if self._runs(step):
                self.world.step_ends(step, self.random.choice([None, "{", '{"version":1}']), self.random.choice([0, 1]))

    def ray_runs(self) -> None:
        if self._ray():
            self.world.running()

    def ray_saves(self) -> None:
        if self._ray():
            step = self.random.randrange(120)
            self.world.say(CheckpointSaved(step=step, uri=f"s3://cloister-runs/legal/u/checkpoints/step-{step:06d}"))

    def ray_succeeds(self) -> None:
        if self._ray():
            self.world.ray("SUCCEEDED", self.random.choice(["Running", "Complete"]))

    def ray_fails(self) -> None:
        if self._ray():
            reason = self.random.choice([FailureReason.NODE_LOST, FailureReason.STORAGE_UNAVAILABLE])
            line = self.world.line(FailureSeen(reason=reason, message="Gone.", step=1, node="n"))
            self.world.ray("FAILED", "Failed", reason="AppFailed", message=self.random.choice([line, "no words"]))

    def kuberay_loses_sight(self) -> None:
        if self._ray():
            if self.random.random() < 0.5:
                self.world.say(Done(step=120, staged_uri="s3://cloister-runs/legal/u/adapter"))
            self.world.ray("FAILED", "Failed", reason="JobDeploymentStatusTransitionGracePeriodExceeded")

    def kueue_evicts(self) -> None:
        if self._ray():
            self.world.ray_job["spec"]["suspend"] = True

    def kueue_admits(self) -> None:
        if self._ray():
            self.world.ray_job["spec"]["suspend"] = False

    def somebody_deletes_a_child(self) -> None:
        children = [found for (kind, _), found in self.world.objects.items() if kind in ("Job", "RayJob", "ConfigMap")]
        if children:
            self.random.choice(children)["metadata"]["deletionTimestamp"] = "2026-01-02T00:00:00Z"

    def job_is_deleted(self) -> None:
        if self.random.random() < 0.1:
            self.world.job["metadata"]["deletionTimestamp"] = "2026-01-02T00:00:00Z"

    def _runs(self, step: Step) -> bool:
        job = self.world.objects.get(("Job", f"contracts-{step}"))
        return job is not None and "status" not in job

    def _ray(self) -> bool:
        return any(job.get("status", {}).get("jobDeploymentStatus") not in ENDED for job in self.world.ray_jobs())


ENDED = ("Complete", "Failed")
HAPPENINGS = [
    *[Story.operator_decides] * 6,
    *[Story.objects_are_collected] * 4,
    *[Story.time_passes] * 3,
    *[Story.step_ends_well] * 3,
    *[Story.ray_runs] * 2,
    Story.operator_is_killed,
    Story.suspend_or_resume,
    Story.hold_or_release,
    Story.step_ends_badly,
    Story.step_ends_without_a_word,
    Story.ray_saves,
    Story.ray_succeeds,
    Story.ray_fails,
    Story.kuberay_loses_sight,
    Story.kueue_evicts,
    Story.kueue_admits,
    Story.somebody_deletes_a_child,
    Story.job_is_deleted,
]


@pytest.mark.parametrize("seed", range(SEQUENCES))
def test_the_promises_hold_whatever_happens(seed: int) -> None:
    story = Story(seed)
    try:
        story.play()
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}; after {', '.join(story.told)}") from error


def test_the_sequences_reach_every_phase() -> None:
    reached = set()
    for seed in range(30):
        story = Story(seed)
        for _ in range(LENGTH):
            story.random.choice(HAPPENINGS)(story)
            reached.add(story.world.status.phase)
    assert reached >= {"Suspended", "Held", "Preparing", "Queued", "Training", "Publishing", "Complete", "Failed"}
