"""`helm test`: from what was found to a table with a fix for each no."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cloister_operator.readiness.facts import Expectations, Facts, InputsFound, JobFound, KubeRayFound, Obstacle
from cloister_operator.readiness.table import Answer, Row, is_ready, render, rows

EXPECTED = Expectations(
    gpu_resources=("nvidia.com/gpu",),
    gpu_optional=False,
    kuberay_labels={"app.kubernetes.io/name": "kuberay-operator"},
    kueue_required=False,
    namespace="cloister-system",
    inputs_name="cloister-readiness-inputs",
    job_name="cloister-readiness",
)
READY = Facts(
    ray_jobs_served=True,
    kuberay=(KubeRayFound("registry.internal/kuberay/operator:v1.6.0"),),
    kueue_served=True,
    kueue_frameworks=frozenset(("batch/job", "ray.io/rayjob")),
    unresolved=(),
    gpus={"nvidia.com/gpu": 16},
    inputs=InputsFound(ended=True),
    job=JobFound(phase="Complete", egress="Enforced"),
)


def row(question: str, facts: Facts, expected: Expectations = EXPECTED) -> Row:
    (found,) = [each for each in rows(facts, expected) if question in each.question]
    return found


def test_a_ready_cluster_says_yes_to_everything() -> None:
    table = rows(READY, EXPECTED)
    assert [each.answer for each in table] == [Answer.YES] * 8
    assert is_ready(table)
    assert "fix:" not in render(table)


@pytest.mark.parametrize(
    ("question", "change", "found", "fix"),
    [
        ("KubeRay", {"ray_jobs_served": False}, "no ray.io/v1 RayJob", "Install KubeRay 1.6 or newer"),
        ("KubeRay", {"kuberay": ()}, "labelled app.kubernetes.io/name=kuberay-operator", "settings.network.kuberay"),
        (
            "KubeRay",
            {"kuberay": (KubeRayFound("kuberay/operator:v1.6.0", available=False),)},
            "v1.6.0: no pod is Available",
            "describe its Deployment",
        ),
        ("KubeRay", {"kuberay": (KubeRayFound("kuberay/operator:v1.5.2"),)}, "v1.5.2", "Install KubeRay 1.6 or newer"),
        ("Kueue", {"kueue_frameworks": frozenset(("batch/job",))}, "does not queue ray.io/rayjob", "integrations"),
        ("GPUs", {"gpus": {}}, "0 nvidia.com/gpu", "device plugin"),
        ("DNS", {"unresolved": ("cloister-control.x.svc",)}, "not cloister-control.x.svc", "settings.network.dns"),
        (
            "Images",
            {"inputs": InputsFound(ended=False, reason="ImagePullBackOff", message="no such host")},
            "ImagePullBackOff: no such host",
            "images.pullSecrets in namespace cloister-system",
        ),
        (
            "object store",
            {"inputs": InputsFound(ended=True, reason="StorageUnsupported", message="ignores If-None-Match")},
            "StorageUnsupported: ignores",
            "conditional writes",
        ),
        (
            "object store",
            {"inputs": InputsFound(ended=True, reason="StorageAccessDenied", message="The keys are refused.")},
            "StorageAccessDenied: The keys",
            "readiness.secretName",
        ),
        (
            "object store",
            {"inputs": InputsFound(ended=True, reason="Internal", message="OOMKilled, exit 137")},
            "Internal: OOMKilled",
            "kubectl logs -n cloister-system job/cloister-readiness-inputs",
        ),
        ("NetworkPolicies", {"job": JobFound(phase="Failed", egress="NotEnforced")}, "reached the canary", "Calico"),
        ("NetworkPolicies", {"job": JobFound(phase="Failed", egress="Unproven")}, "control port", "port 8444"),
        (
            "20 steps",
            {"job": JobFound(phase="Failed", reason="DoesNotFit", message="The model needs 9 GiB.")},
            "Failed, DoesNotFit: The model",
            "docs/reasons.md",
        ),
        (
            "20 steps",
            {"job": JobFound(phase="Queued", reason="Unschedulable", message="Waiting for 1 nvidia.com/gpu")},
            "not in time: Queued, Unschedulable: Waiting for 1",
            "raise readiness.timeoutMinutes",
        ),
        ("20 steps", {"job": JobFound(phase="Training")}, "not in time: Training", "raise readiness.timeoutMinutes"),
        (
            "20 steps",
            {"job": JobFound(phase="", reason=Obstacle.STILL_THERE, message="it is still there")},
            "StillThere: it is still there",
            "kubectl get ftj cloister-readiness -n cloister-system -o yaml",
        ),
    ],
)
def test_each_no_has_what_was_found_and_a_fix(question: str, change: dict[str, Any], found: str, fix: str) -> None:
    facts = replace(READY, **change)
    line = row(question, facts)
    assert line.answer is Answer.NO
    assert found in line.found
    assert fix in line.fix
    assert not is_ready(rows(facts, EXPECTED))
    assert "fix: " in render([line])


@pytest.mark.parametrize(
    ("reason", "fix"),
    [
        (Obstacle.STILL_THERE, "kubectl get job cloister-readiness-inputs -n cloister-system -o yaml"),
        (Obstacle.REFUSED, "admission policy"),
        (Obstacle.NOT_SERVED, "Apply the CRD"),
        (Obstacle.QUEUED, "kubectl describe localqueue -n cloister-system"),
        (Obstacle.NO_POD, "quotas and admission policies of namespace cloister-system"),
        (Obstacle.NOT_STARTED, "readiness.timeoutMinutes"),
        ("Unschedulable", "100m of CPU and 1Gi"),
        ("CreateContainerConfigError", "Make the Secret of readiness.secretName"),
        ("ErrImagePull", "images.pullSecrets"),
        ("Evicted", "kubectl describe job cloister-readiness-inputs -n cloister-system"),
    ],
)
def test_a_step_that_does_not_run_has_the_fix_of_its_reason(reason: str, fix: str) -> None:
    facts = replace(READY, inputs=InputsFound(ended=False, reason=reason, message="So it is."), job=JobFound(phase=""))
    line = row("Images", facts)
    assert (line.answer, line.found) == (Answer.NO, f"{reason}: So it is.")
    assert fix in line.fix
    assert row("object store", facts).answer is Answer.UNKNOWN


def test_a_store_that_does_not_answer_in_time_is_no_image_that_is_missing() -> None:
    facts = replace(READY, inputs=InputsFound(ended=False, reason=Obstacle.NOT_ENDED, message="not in time"))
    assert row("Images", facts).answer is Answer.YES
    line = row("object store", facts)
    assert line.answer is Answer.NO
    assert "settings.storage" in line.fix


def test_what_could_not_be_asked_is_no_yes() -> None:
    facts = replace(READY, inputs=InputsFound(ended=False, reason="NoPod", message="refused"), job=JobFound(phase=""))
    unknown = {each.question for each in rows(facts, EXPECTED) if each.answer is Answer.UNKNOWN}
    assert len(unknown) == 3
    assert not is_ready(rows(facts, EXPECTED))


def test_kueue_and_gpus_are_required_only_when_the_values_say_so() -> None:
    facts = replace(READY, kueue_served=False, kueue_frameworks=None, gpus={})
    relaxed = replace(EXPECTED, gpu_optional=True)
    assert row("Kueue", facts).answer is Answer.NO
    assert is_ready(rows(facts, relaxed))
    assert not is_ready(rows(facts, EXPECTED))
    assert not is_ready(rows(facts, replace(relaxed, kueue_required=True)))


def test_kueue_without_a_readable_configuration_is_no_failure() -> None:
    line = row("Kueue", replace(READY, kueue_frameworks=None))
    assert line.answer is Answer.UNKNOWN
    assert is_ready(rows(replace(READY, kueue_frameworks=None), EXPECTED))


@pytest.mark.parametrize(
    ("image", "chart", "answer", "found"),
    [
        ("registry.internal:5000/kuberay/operator:v1.10.1", "", Answer.YES, "v1.10.1"),
        ("registry.internal:5000/kuberay/operator:1.6.0-rc.1", "", Answer.YES, "1.6.0-rc.1"),
        ("registry.internal:5000/kuberay/operator:v1.5.0@sha256:0123", "", Answer.NO, "v1.5.0"),
        ("kuberay/operator@sha256:0123", "kuberay-operator-1.6.0", Answer.YES, "kuberay-operator-1.6.0"),
        ("kuberay/operator@sha256:0123", "kuberay-operator-1.5.1", Answer.NO, "kuberay-operator-1.5.1"),
        ("registry.internal:5000/kuberay/operator@sha256:0123", "", Answer.UNKNOWN, "its name says no version"),
        ("registry.internal:5000/kuberay/operator:nightly", "", Answer.UNKNOWN, "its name says no version"),
    ],
)
def test_kuberays_version_is_read_from_its_image_or_its_chart(
    image: str, chart: str, answer: Answer, found: str
) -> None:
    facts = replace(READY, kuberay=(KubeRayFound(image, chart),))
    line = row("KubeRay", facts)
    assert line.answer is answer
    assert found in line.found
    assert is_ready(rows(facts, EXPECTED)) is (answer is not Answer.NO)


def test_a_kuberay_that_is_switched_off_says_nothing_of_one_that_runs() -> None:
    found = (KubeRayFound("kuberay/operator:v1.5.0", available=False), KubeRayFound("kuberay/operator:v1.6.0"))
    assert row("KubeRay", replace(READY, kuberay=found)).answer is Answer.YES


def test_the_table_fits_its_columns() -> None:
    text = render(rows(replace(READY, gpus={}), EXPECTED))
    lines = text.splitlines()
    answers = {line.index(f"  {each}  ") for line in lines for each in ("yes", "no ") if f"  {each}  " in line}
    assert len(answers) == 1
    assert max(map(len, lines)) <= 120
