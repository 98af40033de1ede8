"""`helm test` on a real API server: what it asks the cluster, what it makes, and the table that it prints."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cloister_api.reasons import FailureReason
from cloister_api.termination import Outcome, TerminationMessage
from cluster.chart_release import Release
from cluster.control_plane.access import wait_until
from cluster.edges.pod_status import Ended, Waiting
from cluster.jobs import jobs_path

pytest_plugins = ["cluster.chart_fixtures"]

Object = dict[str, Any]
KUBERAY = "registry.internal/kuberay/operator:v1.6.0"
RESTRICTED = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
PLAYED = TerminationMessage(outcome=Outcome.SUCCEEDED).encode()


def deployment_of_kuberay() -> Object:
    labels = {"app.kubernetes.io/name": "kuberay-operator"}
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {"name": "kuberay-operator", "image": KUBERAY, "securityContext": security}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container], "securityContext": RESTRICTED}}
    return {
        "metadata": {"name": "kuberay-operator", "labels": labels},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }


@pytest.fixture
def kuberay_deployed(release: Release) -> Iterator[None]:
    """Its Deployment, as its chart makes it, with a pod that counts as Available; nothing is pulled or started."""
    release.plane.api.create(release.path("deployments", group="/apis/apps/v1"), deployment_of_kuberay())
    path = release.path("deployments", "kuberay-operator", "/apis/apps/v1")
    wait_until(lambda: release.plane.api.get(path)["status"].get("availableReplicas"), "a pod of KubeRay")
    yield
    release.plane.api.delete(release.path("deployments", "kuberay-operator", "/apis/apps/v1"))


@pytest.fixture
def asked(release: Release, crd: None) -> Callable[..., tuple[int, dict[str, str], str]]:
    """Run `helm test` with the pod's command here; its exit code, the answers by question, and what helm said."""

    def ask(play: Callable[[Release], None], *changes: str) -> tuple[int, dict[str, str], str]:
        values = ",".join(["crd.install=false", "settings.storage.endpoint=http://127.0.0.1:1", *changes])
        release.helm("install", "--set", values)
        with release.running("test", "--logs", "--timeout", "2m") as testing:
            pod = release.wait_for_pod("readiness")
            with release.in_background(pod, "--patience", "3") as process:
                play(release)
                printed, errors = process.communicate(timeout=120)
            release.kubelet.say(release.namespace, pod["metadata"]["name"], printed + errors)
            release.end(pod, Ended(process.returncode))
            said = str(testing.exception(timeout=60) or testing.result())
            assert "unable to get pod logs" not in said
        answers = dict(re.findall(r"^(\S.*\S) +(yes|no |-  )  ", printed, re.MULTILINE))
        return process.returncode, {question: answer.strip() for question, answer in answers.items()}, printed + said

    return ask


def inputs_end(release: Release, state: Ended | Waiting) -> None:
    def pod() -> Object | None:
        selector = "labelSelector=job-name%3Dcloister-readiness-inputs"
        found = release.plane.api.get(f"{release.path('pods')}?{selector}")["items"]
        return next(iter(found), None)

    name = wait_until(pod, "the pod that writes the inputs")["metadata"]["name"]
    release.kubelet.order(state, release.namespace, pod=name)


def job_ends(release: Release, status: Object) -> None:
    """What the operator and the trainer would bring about."""
    path = jobs_path(release.namespace, "cloister-readiness")
    wait_until(lambda: release.plane.api.exists(path), "the job")
    release.plane.api.patch(f"{path}/status", {"status": status})


def condition(reason: str, status: str) -> Object:
    return {
        "type": "EgressRestricted",
        "status": status,
        "reason": reason,
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }


def test_a_cluster_where_all_goes_well_but_names(
    asked: Callable[..., Any], release: Release, kuberay_deployed: None
) -> None:
    """This machine's resolver knows none of the cluster's names, so that is a no, with its fix."""

    def play(release: Release) -> None:
        inputs_end(release, Ended(0, PLAYED))
        job_ends(release, {"phase": "Complete", "conditions": [condition("Enforced", "True")]})

    code, answers, said = asked(play)
    assert code == 1
    assert {question for question, answer in answers.items() if answer != "yes"} == {
        "DNS resolves names",
        "Kueue queues RayJobs",
    }
    assert len(answers) == 8
    assert KUBERAY in said
    assert "8 nvidia.com/gpu" in said
    assert "fix: Check CoreDNS" in said
    path = jobs_path(release.namespace, "cloister-readiness")
    wait_until(lambda: not release.plane.api.exists(path), "the job to be deleted")


def test_a_cluster_that_enforces_nothing(asked: Callable[..., Any], release: Release) -> None:
    def play(release: Release) -> None:
        inputs_end(release, Ended(0, PLAYED))
        status = {"phase": "Failed", "reason": "EgressNotEnforced", "message": "This pod reached the canary."}
        job_ends(release, status | {"conditions": [condition("NotEnforced", "False")]})

    code, answers, said = asked(play)
    assert code == 1
    assert answers["NetworkPolicies are enforced"] == "no"
    assert answers["KubeRay 1.6 or newer runs"] == "no"
    assert "fix: Use a network plugin that enforces NetworkPolicies" in said
    assert "EgressNotEnforced: This pod reached the canary." in said
    assert release.plane.api.exists(jobs_path(release.namespace, "cloister-readiness")), "it stays to be read"


def test_a_store_without_conditional_writes(asked: Callable[..., Any], release: Release) -> None:
    refused = TerminationMessage(
        outcome=Outcome.REFUSED, reason=FailureReason.STORAGE_UNSUPPORTED, message="It ignores If-None-Match."
    )
    code, answers, said = asked(lambda release: inputs_end(release, Ended(11, refused.encode())))
    assert code == 1
    assert answers["The object store takes conditional writes"] == "no"
    assert answers["A job of 20 steps went through all phases"] == "-"
    assert "StorageUnsupported: It ignores If-None-Match." in said
    assert not release.plane.api.exists(jobs_path(release.namespace, "cloister-readiness"))


def test_an_image_that_is_not_there(asked: Callable[..., Any], release: Release) -> None:
    waiting = Waiting("ImagePullBackOff", 'Back-off pulling image "registry.internal/cloister/trainer:0.1.0"')
    code, answers, said = asked(lambda release: inputs_end(release, waiting))
    assert code == 1
    assert answers["Images are pulled, pods let in"] == "no"
    assert 'ImagePullBackOff: Back-off pulling image "registry.internal/cloister/trainer:0.1.0"' in said
    assert "fix: Check images.*" in said
