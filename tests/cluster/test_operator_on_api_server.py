"""A job's way from apply to a published adapter, and what Events, metrics, logs and probes tell of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from cloister_api.events import CheckpointSaved, EvaluationDone, Progress
from cluster.control_plane.access import wait_until
from cluster.control_plane.api import Object
from cluster.operator_jobs import Scene
from cluster.operator_process import OperatorProcess
from support.operator_values import OUTPUT, PLAN

pytest_plugins = ["cluster.operator_fixtures"]

PROGRESS = Progress(step=3, total_steps=9, epoch=0.3, loss=1.5, learning_rate=1e-4, tokens_per_second=9, eta_seconds=60)
FALSE = Progress(step=99, total_steps=99, epoch=9, loss=0, learning_rate=0, tokens_per_second=0, eta_seconds=0)
PROVENANCE = {"requestedBy": "Ada", "ticket": "LEGAL-7"}
STORY = ["Preparing", "Starting", "Training", "Publishing", "Complete"]
COUNTED_S = 40
"""The operator counts jobs for its metrics every few seconds."""
STOPS_S = 5


@dataclass(frozen=True)
class Told:
    """A finished job, and what was to be seen on its way."""

    scene: Scene
    training: Object
    progress_at: float | None
    """The metric of the last progress, while the job trained."""


def say_inside_other_lines(scene: Scene, event: Progress) -> None:
    """The driver prints rows of data, and a worker's output, that hold an event."""
    for around in ('row 7: {{"text": {}}}', "(RayTrainWorker pid=1) {}", "  {}", "{} and more"):
        scene.kubelet.say(scene.namespace, scene.submitter(), around.format(scene.line(event)) + "\n")


@pytest.fixture(scope="module")
def told(new_scene: Callable[[], Scene]) -> Told:
    """The way itself: a step at a time, each phase seen before the next begins."""
    scene = new_scene()
    scene.preparing({"spec.provenance": PROVENANCE})
    scene.prepare_succeeds()
    scene.wait_for("Queued", "Starting")
    scene.ray_says("RUNNING")
    scene.wait_for("Training")
    uri = f"s3://cloister-runs/{scene.namespace}/u/checkpoints/step-000003"
    say_inside_other_lines(scene, FALSE)
    for event in (PROGRESS, CheckpointSaved(step=3, uri=uri), EvaluationDone(step=3, loss=1.2, base_loss=1.6)):
        scene.driver_says(event)
    say_inside_other_lines(scene, FALSE)
    training = scene.wait_until(lambda status: "progress" in status, "progress")
    labels = {"namespace": scene.namespace, "name": scene.name}

    def progress_at() -> float | None:
        return scene.operator.sample("cloister_job_last_progress_timestamp_seconds", **labels)

    found: float | None = wait_until(progress_at, "the metric of the progress", COUNTED_S)
    scene.ray_ends("SUCCEEDED")
    scene.running("publish")
    scene.wait_for("Publishing")
    scene.publish_succeeds()
    scene.wait_for("Complete")
    return Told(scene, training, found)


def test_an_event_inside_a_row_of_data_says_nothing(told: Told) -> None:
    assert told.training["progress"]["step"] == PROGRESS.step


def test_the_status_of_a_published_job_says_what_was_done(told: Told) -> None:
    status, seen = told.scene.status, told.training
    assert (seen["progress"]["summary"], seen["progress"]["totalSteps"], seen["checkpoint"]["step"]) == ("33%", 9, 3)
    assert (status["output"], status["plan"]["totalSteps"]) == (OUTPUT, PLAN["totalSteps"])
    assert status["evaluation"]["loss"] == 0.5
    (attempt,) = status["attempts"]
    assert (attempt["number"], attempt["reason"], attempt["restarts"]) == (1, "Complete", 0)
    assert attempt["gpuSeconds"] == status["gpuSeconds"] > 0
    assert status["startTime"] <= attempt["start"] <= attempt["end"] <= status["completionTime"]
    true = {kind for kind, (value, _) in told.scene.conditions().items() if value == "True"}
    assert true == {"Accepted", "Prepared", "EgressRestricted", "Published", "Complete"}


def test_events_tell_the_story_in_order(told: Told) -> None:
    scene = told.scene
    events = json.loads(scene.plane.kubectl("get", "events", "--output=json", namespace=scene.namespace))["items"]
    own = [each for each in events if each["involvedObject"]["uid"] == scene.job["metadata"]["uid"]]
    own.sort(key=lambda each: int(each["metadata"]["resourceVersion"]))
    assert [each["reason"] for each in own] == STORY
    assert {(each["type"], each["source"]["component"]) for each in own} == {("Normal", "cloister-operator")}
    assert all(each["message"] for each in own)
    printed = scene.plane.kubectl("describe", "finetunejob", scene.name, namespace=scene.namespace)
    assert all(reason in printed.partition("Events:")[2] for reason in STORY)


def test_metrics_count_what_was_done(told: Told) -> None:
    scene, operator = told.scene, told.scene.operator
    own = {"namespace": scene.namespace}
    wait_until(lambda: operator.sample("cloister_jobs", **own, phase="Complete") == 1, "the finished job", COUNTED_S)
    assert [labels for labels, _ in operator.samples("cloister_jobs") if labels["namespace"] == scene.namespace] == [
        own | {"phase": "Complete"}
    ], "a job has one phase"
    assert operator.sample("cloister_attempts", **own) == 1
    assert operator.sample("cloister_gpu_seconds", **own) == scene.status["gpuSeconds"]
    assert told.progress_at is not None and abs(time.time() - told.progress_at) < 300
    last = "cloister_job_last_progress_timestamp_seconds"
    assert operator.sample(last, **own, name=scene.name) is None, "only a job that trains makes progress"
    wait_until(lambda: operator.sample("cloister_queue_depth") == 0, "an empty queue")
    passes, seconds = (operator.sample(f"cloister_reconcile_seconds_{part}") or 0 for part in ("count", "sum"))
    assert passes >= len(STORY) and 0 < seconds < 60
    assert "# TYPE cloister_reconcile_errors_total counter" in operator.get("metrics", "/metrics")
    calls = {(each["verb"], each["kind"]): value for each, value in operator.samples("cloister_api_calls_total")}
    assert calls["post", "Job"] >= 2 and calls["post", "RayJob"] >= 1 and calls["post", "Event"] >= len(STORY)
    assert calls["patch", "FineTuneJob"] >= len(STORY) and calls["post", "NetworkPolicy"] >= 2


def test_it_is_healthy_and_ready(told: Told) -> None:
    assert told.scene.operator.get("health", "/healthz") == told.scene.operator.get("health", "/readyz") == "ok\n"


def test_every_line_of_the_log_is_an_object_and_lines_about_the_job_have_its_key(told: Told) -> None:
    scene = told.scene
    lines = scene.operator.log_lines()
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    about = [line for line in lines if f"{scene.namespace}/{scene.name}" in line["message"]]
    assert about
    assert {(line.get("namespace"), line.get("name")) for line in about} == {(scene.namespace, scene.name)}


def test_the_audit_has_one_line_for_each_thing_that_happened(told: Told) -> None:
    uid = told.scene.job["metadata"]["uid"]
    lines = [line for line in told.scene.operator.log_lines() if line.get("audit") == 1 and line["uid"] == uid]
    assert [line["what"] for line in lines] == ["accepted", "attempt", "completed"]
    assert all(line["provenance"] == PROVENANCE for line in lines)
    assert lines[1]["attempt"] == 1
    assert (lines[2]["output"], lines[2]["manifestDigest"]) == (OUTPUT["uri"], OUTPUT["manifestDigest"])
    assert lines[2]["gpuSeconds"] == told.scene.status["gpuSeconds"]


def test_a_job_that_is_not_allowed_gets_no_object_and_one_audit_line(scene: Scene) -> None:
    scene.apply({"spec.network": {"egress": "Open"}})
    scene.wait_for("Failed", "PolicyDenied")
    assert scene.names("jobs") == scene.names("networkpolicies") == []
    uid = scene.job["metadata"]["uid"]
    lines = [line for line in scene.operator.log_lines() if line.get("audit") == 1 and line["uid"] == uid]
    assert [(line["what"], line["reason"]) for line in lines] == [("refused", "PolicyDenied")]


def test_asked_to_end_it_ends_at_once_and_without_complaint(told: Told, cloister: OperatorProcess) -> None:
    """The last test of this module: the next one would start it again."""
    cloister.start()
    wait_until(lambda: cloister.get("health", "/readyz") == "ok\n", "a ready operator")
    before = len(cloister.log_lines())
    assert cloister.end_gracefully(STOPS_S) == 0
    rest = cloister.log_lines()[before:]
    assert not [line for line in rest if "trace" in line or line["level"] in ("error", "critical")]
