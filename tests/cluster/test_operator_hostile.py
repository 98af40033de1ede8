"""Jobs that ask for what they must not have, on the real API: a refusal with a sentence, and no object.

The API server refuses what breaks the schema; the rest is stored, and the operator refuses it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from cloister_api.termination import Outcome, TerminationMessage
from cluster.control_plane.api import ApiError
from cluster.edges.pod_status import MESSAGE_BYTES, Ended
from cluster.operator_jobs import Object, Scene
from support.operator_values import PREPARED

pytest_plugins = ["cluster.operator_fixtures"]

MARK = "cloister-was-here"
SHELL = f"$(touch /{MARK})`id`;'\"|&&>\\{MARK}"
NODES = "spec.pods.worker.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution"
PODS = "spec.pods.worker.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution"


@dataclass(frozen=True)
class Case:
    """Fields of a job, and the sentence that refuses it: the API server's where there is no reason."""

    changes: dict[str, Any]
    words: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{', '.join(self.changes)}: {self.words}"[:80]


BY_THE_SERVER = [
    Case({"metadata.name": "x; rm -rf"}, "a lowercase RFC 1123 subdomain"),
    Case({"metadata.labels": {"kueue.x-k8s.io/queue-name": "$(id)"}}, "metadata.labels"),
    Case({"spec.model.uri": "https://elsewhere/m"}, "spec.model.uri"),
    Case({"spec.model.uri": "s3://user:password@models/m"}, "spec.model.uri"),
    Case({"spec.model.uri": "s3://models/a b"}, "spec.model.uri"),
    Case({"spec.model.uri": "s3://models/a\nb"}, "spec.model.uri"),
    Case({"spec.model.uri": "s3://models/" + "x" * 5000}, "spec.model.uri"),
    Case({"spec.output.uri": "s3://adapters/x/../other"}, "a URI has no . or .. in its path"),
    Case({"spec.output.uri": "pvc://weights/x"}, "spec.output.uri"),
    Case({"spec.storage.secretName": "$(id)"}, "spec.storage.secretName"),
    Case({"spec.storage.secretName": "../kube-system/token"}, "spec.storage.secretName"),
    Case({"spec.model.cache": {"claimName": "a/b"}}, "spec.model.cache.claimName"),
    Case({"spec.distribution.profile": "x" * 64}, "spec.distribution.profile"),
    Case({"spec.distribution.workers": 1_000_000}, "spec.distribution.workers"),
    Case({"spec.provenance.ticket": "x" * 10_000}, "spec.provenance.ticket"),
    Case({"spec.dataset.systemPrompt": "x" * 500_000}, "spec.dataset.systemPrompt"),
    Case({NODES: {"a": "x" * 3_500_000}}, "too large"),
    Case({"spec.pods.worker.priorityClassName": "High!"}, "spec.pods.worker.priorityClassName"),
    Case({"spec.pods.worker.nodeSelector": {"a": "$(id)"}}, "spec.pods.worker.nodeSelector"),
    Case({"spec.lora.targets": {"modules": ["q_proj;id"]}}, "spec.lora.targets.modules"),
]
BY_THE_OPERATOR = [
    Case({"spec.model.uri": "file:///etc"}, "for local runs", "SpecInvalid"),
    Case({"spec.model.license": "mit\x1b[2J"}, "control characters", "SpecInvalid"),
    Case({"spec.model.license": "mit\u202etxt"}, "control characters", "SpecInvalid"),
    Case({"spec.provenance.ticket": "a\nb"}, "spec.provenance.ticket", "SpecInvalid"),
    Case({NODES: {"a": "\x00"}}, "control characters", "SpecInvalid"),
    Case({NODES: {"a": "x" * 500_000}}, "bytes; expected at most 400,000", "SpecInvalid"),
    Case({"metadata.annotations": {"kueue.x-k8s.io/podset-required-topology": SHELL}}, "node label", "SpecInvalid"),
    Case({"spec.output.uri": "s3://models/llama-3.1-8b-instruct/x"}, "choose a place outside", "SpecInvalid"),
    Case({"spec.distribution.profile": SHELL[:60]}, "the administrator allows default", "PolicyDenied"),
    Case({"spec.distribution.workers": 65}, "one job may have 64", "PolicyDenied"),
    Case({"spec.network.egress": "Open"}, "the administrator allows Restricted", "PolicyDenied"),
    Case({"spec.storage.secretName": "other"}, "the administrator allows cloister-storage", "PolicyDenied"),
    Case({"spec.output.signing": {"secretName": "root-key"}}, "spec.output.signing.secretName", "PolicyDenied"),
    Case({"spec.model.uri": "s3://elsewhere/m"}, "found s3://elsewhere/m", "PolicyDenied"),
    Case({"spec.model.uri": "s3://models-of-others/m"}, "found s3://models-of-others/m", "PolicyDenied"),
    Case({"spec.model.uri": "pvc://weights-of-others/m"}, "found pvc://weights-of-others/m", "PolicyDenied"),
    Case({"spec.model.cache": {"claimName": "of-others"}}, "spec.model.cache.claimName", "PolicyDenied"),
    Case({"spec.output.uri": "s3://adapters/kube-system/x"}, "found s3://adapters/kube-system/x", "PolicyDenied"),
    Case({"spec.dataset.cacheUri": "s3://adapters/kube-system/c"}, "spec.dataset.cacheUri", "PolicyDenied"),
    Case({"spec.resumeFrom": {"uri": "s3://cloister-runs/kube-system/u"}}, "spec.resumeFrom.uri", "PolicyDenied"),
    Case({"spec.storage.runUri": "s3://cloister-runs/kube-system"}, "spec.storage.runUri", "PolicyDenied"),
    Case({"spec.pods.worker.priorityClassName": "system-node-critical"}, "priorityClassName", "PolicyDenied"),
    Case({"spec.pods.head.tolerations": [{"operator": "Exists"}]}, "spec.pods.head.tolerations", "PolicyDenied"),
    Case({"spec.pods.prepare.resources": {"limits": {"nvidia.com/gpu": 8}}}, "gpusPerWorker", "PolicyDenied"),
    Case({PODS: [{"namespaces": ["kube-system"]}]}, "namespaces", "PolicyDenied"),
    Case({PODS: [{"namespaceSelector": {}}]}, "namespaceSelector", "PolicyDenied"),
]


def other(scene: Scene, name: str) -> Scene:
    """Another job in the same namespace."""
    return Scene(scene.plane, scene.operator, scene.kubelet, scene.dashboard, scene.namespace, name)


@pytest.fixture(scope="module")
def refused(new_scene: Callable[[], Scene]) -> list[Scene]:
    """All jobs that the operator is to refuse, made at once in one namespace."""
    scene = new_scene()
    begun = [other(scene, f"hostile-{number}") for number in range(len(BY_THE_OPERATOR))]
    for each, case in zip(begun, BY_THE_OPERATOR, strict=True):
        each.apply(case.changes)
    return begun


@pytest.mark.parametrize("case", BY_THE_SERVER, ids=str)
def test_what_breaks_the_schema_is_not_stored(case: Case, scene: Scene) -> None:
    with pytest.raises(ApiError) as refusal:
        scene.apply(case.changes)
    assert refusal.value.code in (400, 413, 422)
    assert case.words in refusal.value.message
    assert not scene.exists


@pytest.mark.parametrize("case", BY_THE_OPERATOR, ids=str)
def test_what_is_not_allowed_is_refused_with_a_sentence(case: Case, refused: list[Scene]) -> None:
    scene = refused[BY_THE_OPERATOR.index(case)]
    status = scene.wait_for("Failed", case.reason, case.words)
    assert not any(ord(character) < 32 for character in status["message"])
    assert scene.conditions()["Accepted"] == ("False", case.reason)
    assert scene.conditions()["Failed"] == ("True", case.reason)


def test_nothing_was_made_for_any_of_them(refused: list[Scene]) -> None:
    for scene in refused:
        scene.wait_until(lambda status: status.get("phase") == "Failed", "a refusal")
    scene = refused[0]
    for plural in ("jobs", "rayjobs", "rayclusters", "pods", "networkpolicies"):
        assert scene.names(plural) == [], plural
    assert scene.names("configmaps") == ["kube-root-ca.crt"]


def test_text_that_a_shell_would_run_is_data_in_the_run_file_and_nowhere_else(scene: Scene) -> None:
    scene.publishing(
        {
            "spec.model.uri": f"s3://models/{SHELL.replace(' ', '${IFS}')}",
            "spec.model.chatTemplate": {"inline": SHELL},
            "spec.dataset.uri": f"s3://datasets/{SHELL.replace(' ', '${IFS}')}",
            "spec.dataset.systemPrompt": SHELL,
            "spec.provenance": {"ticket": SHELL, "requestedBy": SHELL},
        }
    )
    (run_file,) = [each for each in scene.items("configmaps") if each["metadata"]["name"] == "contracts-run"]
    assert json.loads(run_file["data"]["run.json"])["spec"]["dataset"]["systemPrompt"] == SHELL
    for plural in ("jobs", "rayjobs", "rayclusters", "pods", "networkpolicies"):
        found = scene.items(plural)
        assert MARK not in json.dumps([[each["metadata"], each["spec"]] for each in found]), plural


def said(result: Object, **more: Any) -> str:
    return TerminationMessage(outcome=Outcome.SUCCEEDED, result={**result, **more}).encode()


MESSAGES = {
    "too long for a kubelet": json.dumps({"version": 1, "outcome": "Succeeded", "result": PREPARED, "x": "x" * 5000}),
    "cut at its end": said(PREPARED)[:-20],
    "followed by more": said(PREPARED) + "\n{}",
    "of another version": said(PREPARED).replace('"version":1', '"version":2'),
}


@pytest.fixture(scope="module")
def misled(new_scene: Callable[[], Scene]) -> dict[str, Scene]:
    """prepare ends well and leaves what is no result, each job in a namespace of its own."""
    begun = {name: new_scene() for name in MESSAGES}
    for name, scene in begun.items():
        scene.step_ends("prepare", Ended(0, MESSAGES[name]))
        scene.apply()
    return begun


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_that_is_not_whole_is_no_success(name: str, misled: dict[str, Scene]) -> None:
    scene = misled[name]
    assert MESSAGES[name] != said(PREPARED) and (len(MESSAGES[name]) > MESSAGE_BYTES) == ("long" in name)
    status = scene.wait_for("Preparing", "Internal", "ended without a message that can be read")
    assert status["retries"] >= 1
    assert scene.names("rayjobs") == []
