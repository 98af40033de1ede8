"""Evidence that somebody else could have written changes nothing; jobs that ask for too much are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from cloister_api.events import Done, FailureSeen, Progress, format_event
from cloister_api.reasons import FailureReason
from cloister_operator.names import Step
from support.operator_values import OUTPUT, PREPARED, PUBLISHED, settings
from support.operator_world import World

SUCCESS = json.dumps({"version": 1, "outcome": "Succeeded", "result": PREPARED})
REFUSAL = json.dumps({"version": 1, "outcome": "Refused", "reason": "ModelNotFound", "message": "It is not there."})


def unchanged(play: Callable[[World], Any], start: Callable[[World], Any]) -> World:
    """The world after `play`, which must leave status and children as they were."""
    world = World()
    start(world)
    world.settle()
    before, children = json.dumps(world.job["status"]), set(world.made)
    play(world)
    world.settle()
    assert json.dumps(world.job["status"]) == before
    assert set(world.made) == children
    return world


def labelled_pod(world: World) -> None:
    """A pod with all our labels, that no controller of ours made."""
    forged = {"kind": "Job", "metadata": {"name": "contracts-prepare", "uid": "forged"}}
    ended = {"terminated": {"exitCode": 0, "reason": "Completed", "message": SUCCESS}}
    pod = world.pod(forged, "prepare", phase="Succeeded", container="prepare", state=ended)
    pod["metadata"]["labels"] |= {"cloister.dev/job": "contracts", "cloister.dev/role": "prepare"}


def owned_but_not_controlled(world: World) -> None:
    """An owner reference anybody may add; only the controller's counts."""
    labelled_pod(world)
    for pod in world.find("Pod"):
        pod["metadata"]["ownerReferences"] = [
            {"kind": "Job", "uid": world.step_job(Step.PREPARE)["metadata"]["uid"], "controller": False}
        ]


def normal_event(world: World) -> None:
    world.warn(world.step_job(Step.PREPARE), "FailedCreate", "pods are forbidden")
    world.events[-1]["type"] = "Normal"


def event_about_another(world: World) -> None:
    world.warn({"metadata": {"uid": "another"}}, "FailedCreate", "pods are forbidden")


def event_while_pods_run(world: World) -> None:
    world.warn(world.step_job(Step.PREPARE), "FailedCreate", "pods are forbidden")


@pytest.mark.parametrize("forge", [labelled_pod, owned_but_not_controlled, normal_event, event_about_another])
def test_what_is_not_the_jobs_own_changes_nothing(forge: Callable[[World], None]) -> None:
    unchanged(forge, lambda world: world.settle())


def test_an_event_about_a_job_whose_pod_runs_changes_nothing() -> None:
    def start(world: World) -> None:
        world.settle()
        world.pod(world.step_job(Step.PREPARE), "prepare")

    unchanged(event_while_pods_run, start)


@pytest.mark.parametrize(
    "message",
    [
        None,
        "",
        "{",
        SUCCESS[200:],
        SUCCESS + "x",
        "x" * 4096,
        SUCCESS.replace('"version": 1', '"version": 2'),
        SUCCESS.replace('"Succeeded"', '"succeeded"'),
        json.dumps({"version": 1, "outcome": "Succeeded"}),
        json.dumps({"version": 1, "outcome": "Succeeded", "result": {"plan": {"zeroStage": "2"}}}),
        json.dumps({"version": 1, "outcome": "Succeeded", "result": {"output": OUTPUT}}),
    ],
)
def test_a_message_of_another_form_is_no_success(message: str | None) -> None:
    world = World()
    world.settle()
    world.step_ends(Step.PREPARE, message)
    status = world.settle()
    assert (status.phase, status.reason, status.retries) == ("Preparing", "Internal", 1)
    world.pass_time(minutes=1)
    world.settle()
    assert world.made.count("Job contracts-prepare") == 2


def test_the_newest_pod_of_a_job_is_believed() -> None:
    world = World()
    world.settle()
    refused = {"terminated": {"exitCode": 12, "reason": "Error", "message": REFUSAL}}
    world.pod(world.step_job(Step.PREPARE), "prepare", phase="Failed", container="prepare", state=refused)
    world.pass_time(seconds=10)
    world.succeed(Step.PREPARE, PREPARED)
    assert world.settle().phase == "Queued"


LINES = {
    "in a row": 'row 7: {text: "LINE"}',
    "quoted": '"LINE"',
    "of a worker": "(RayTrainWorker pid=1, ip=10.0.0.1) LINE",
    "indented": "  LINE",
    "followed by more": "LINE and more",
}


@pytest.mark.parametrize("around", LINES.values(), ids=LINES.keys())
def test_an_event_inside_another_line_is_text(around: str) -> None:
    def say(world: World) -> None:
        line = world.line(
            Progress(step=99, total_steps=120, epoch=1, loss=0, learning_rate=0, tokens_per_second=0, eta_seconds=0)
        )
        world.logs[world.submitter()["metadata"]["uid"]] = around.replace("LINE", line)

    def start(world: World) -> None:
        world.prepared()
        world.running()

    unchanged(say, start)


@pytest.mark.parametrize(("uid", "attempt"), [("00000000-0000-4000-8000-999999999999", 1), (None, 2)])
def test_a_done_of_another_run_or_attempt_does_not_publish(uid: str | None, attempt: int) -> None:
    world = World()
    world.prepared()
    world.running()
    done = Done(step=120, staged_uri="s3://cloister-runs/legal/u/adapter")
    line = format_event(uid or world.job["metadata"]["uid"], attempt, world.now, done)
    world.logs[world.submitter()["metadata"]["uid"]] = line
    world.ray("FAILED", "Failed", reason="JobDeploymentStatusTransitionGracePeriodExceeded")
    assert world.settle().reason == "BackingOff"


def test_a_done_alone_is_no_success() -> None:
    def say(world: World) -> None:
        world.say(Done(step=120, staged_uri="s3://cloister-runs/legal/u/adapter"))

    def start(world: World) -> None:
        world.prepared()
        world.running()

    unchanged(say, start)


def test_a_failure_event_that_training_went_on_from_is_forgotten() -> None:
    world = World()
    world.prepared()
    world.running()
    world.say(FailureSeen(reason=FailureReason.LOSS_DIVERGED, message="NaN.", step=1, node="n"))
    world.say(Progress(step=2, total_steps=9, epoch=1, loss=1, learning_rate=0, tokens_per_second=0, eta_seconds=0))
    world.ray("FAILED", "Failed", reason="AppFailed", message="Job entrypoint command failed with exit code 1")
    assert world.settle().reason == "BackingOff"


def test_words_of_others_are_quoted_without_control_characters_and_not_at_length() -> None:
    world = World()
    world.settle()
    world.warn(world.step_job(Step.PREPARE), "FailedCreate", "\x1b[2J" + "x" * 9000 + "\nphase: Complete")
    message = world.settle().message or ""
    assert "\x1b" not in message and "\n" not in message and len(message) < 1500


NAMED = {"name": "x", "namespace": "legal"}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"spec.model.uri": "file:///etc"}, "SpecInvalid", "for local runs"),
    ({"spec.model.uri": "s3://models/$(id)`id`;rm -rf"}, "SpecInvalid", "spec.model.uri"),
    ({"spec.model.license": "mit\x1b[2J"}, "SpecInvalid", "control characters"),
    ({"spec.model.license": "mit\u202etxt"}, "SpecInvalid", "control characters"),
    ({"spec.provenance.ticket": "a\nb"}, "SpecInvalid", "spec.provenance.ticket"),
    (
        {
            "spec.pods.worker.affinity": {
                "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"a": "\x00"}}
            }
        },
        "SpecInvalid",
        "control characters",
    ),
    (
        {
            "spec.pods.worker.affinity": {
                "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"a": "x" * 500_000}}
            }
        },
        "SpecInvalid",
        "bytes",
    ),
    ({"spec.dataset.systemPrompt": "x" * 500_000}, "SpecInvalid", "spec.dataset.systemPrompt"),
    ({"spec.unknown": 1}, "SpecInvalid", "unknown field"),
    ({"spec.training.epochs": "3"}, "SpecInvalid", "spec.training.epochs"),
    ({"metadata.annotations": {"kueue.x-k8s.io/podset-required-topology": "a\nb"}}, "SpecInvalid", "node label"),
    ({"spec.output.uri": "s3://models/llama-3.1-8b-instruct/x"}, "SpecInvalid", "choose a place outside"),
    ({"spec.distribution": {"profile": "$(id)"}}, "PolicyDenied", "the administrator allows default"),
    ({"spec.distribution": {"workers": 65}}, "PolicyDenied", "one job may have 64"),
    ({"spec.distribution": {"workers": 64, "gpusPerWorker": 64}}, "PolicyDenied", "4096 GPUs"),
    ({"spec.network.egress": "Open"}, "PolicyDenied", "the administrator allows Restricted"),
    ({"spec.storage.secretName": "other"}, "PolicyDenied", "the administrator allows cloister-storage"),
    ({"spec.output.signing": {"secretName": "other"}}, "PolicyDenied", "spec.output.signing.secretName"),
    ({"spec.model.uri": "pvc://claim/m"}, "PolicyDenied", "found claim; the administrator allows none"),
    ({"spec.model.cache": {"claimName": "claim"}}, "PolicyDenied", "spec.model.cache.claimName"),
    ({"spec.pods.worker.priorityClassName": "system-node-critical"}, "PolicyDenied", "priorityClassName"),
    ({"spec.pods.head.tolerations": [{"operator": "Exists"}]}, "PolicyDenied", "spec.pods.head.tolerations"),
    ({"spec.pods.prepare.resources": {"limits": {"nvidia.com/gpu": 8}}}, "PolicyDenied", "gpusPerWorker"),
    (
        {
            "spec.pods.worker.affinity": {
                "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"namespaces": ["other"]}]}
            }
        },
        "PolicyDenied",
        "namespaces",
    ),
]


@pytest.mark.parametrize(("changes", "reason", "words"), REFUSED, ids=lambda value: str(value)[:60])
def test_a_hostile_job_is_refused_and_gets_no_object(changes: dict[str, Any], reason: str, words: str) -> None:
    world = World(changes)
    status = world.settle()
    assert (status.phase, status.reason) == ("Failed", reason), status.message
    assert words in (status.message or "")
    assert not world.made
    assert world.conditions()["Accepted"] == ("False", reason)


def test_uris_keep_to_the_namespace() -> None:
    allowed = {"uriPrefixes": ["s3://{namespace}", "s3://models", "s3://cloister-runs/{namespace}"]}
    own = {"spec.dataset.uri": "s3://legal/d.jsonl", "spec.output.uri": "s3://legal/out"}
    assert World(own, settings(allowed=allowed)).settle().phase == "Preparing"
    for changes in (
        {"spec.dataset.uri": "s3://legal-2/d.jsonl"},
        {"spec.resumeFrom": {"uri": "s3://cloister-runs/research/u"}},
        {"spec.dataset.cacheUri": "s3://research/cache"},
    ):
        status = World(own | changes, settings(allowed=allowed)).settle()
        assert (status.phase, status.reason) == ("Failed", "PolicyDenied")


def test_a_second_job_with_the_same_output_is_refused_by_name_inside_its_namespace_only() -> None:
    for namespace, word in (("legal", "job first "), ("research", "a job of another namespace")):
        world = World()
        first = {"name": "first", "namespace": namespace, "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
        other = {**world.job, "metadata": first, "status": {"startTime": "2026-01-01T00:00:00Z", "phase": "Training"}}
        world.other_jobs = [other]
        status = world.settle()
        assert (status.phase, status.reason) == ("Failed", "OutputExists")
        assert word in (status.message or "")


def test_a_policy_that_changes_later_does_not_touch_an_accepted_job() -> None:
    world = World({"spec.network.egress": "Open"}, settings(allowed={"egress": ["Restricted", "Open"]}))
    world.settle()
    world.settings = settings()
    world.succeed(Step.PREPARE, PREPARED)
    assert world.settle().phase == "Queued"
    assert world.conditions()["EgressRestricted"] == ("False", "Open")


def test_a_published_result_counts_only_after_training() -> None:
    world = World()
    world.settle()
    world.succeed(Step.PREPARE, PUBLISHED)
    assert world.settle().phase == "Preparing"


def test_no_text_is_too_long_for_status() -> None:
    words = "x" * 2700
    world = World()
    world.settle()
    world.refuse(Step.PREPARE, "ModelNotFound", words, exit_code=10)
    assert len(world.settle().message or "") <= 4096
    keys = {f"{number}{'y' * 250}": "x" for number in range(16)}
    world = World({"spec.pods.worker.nodeSelector": keys | {"z\x07": "x"}})
    assert world.settle().reason == "SpecInvalid"
