"""Reasons from the evidence that a real scheduler, Job controller, quota, KubeRay and API server leave.

The cases of the table all begin together, each in a namespace of its own; what happens in them is arranged before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from cloister_api.events import FailureSeen
from cloister_api.reasons import FailureReason
from cluster.control_plane.access import wait_until
from cluster.edges.pod_status import Ended, Waiting
from cluster.operator_jobs import Scene, failed
from cluster.ray_jobs import create_batch_job, pod_spec

pytest_plugins = ["cluster.operator_fixtures"]
pytestmark = pytest.mark.usefixtures("large_node")


@dataclass(frozen=True)
class Case:
    """What happens to a job, and where it leads: a phase with a reason, and words that the message has."""

    name: str
    play: Callable[[Scene], Any]
    phase: str
    reason: str
    words: str

    def __str__(self) -> str:
        return f"{self.name}: {self.phase} {self.reason}"


def with_fields(changes: dict[str, Any]) -> Callable[[Scene], Any]:
    """A job with fields set; prepare succeeds."""

    def play(scene: Scene) -> None:
        scene.prepare_succeeds()
        scene.apply(changes)

    return play


def prepare_is(state: Ended | Waiting) -> Callable[[Scene], Any]:
    def play(scene: Scene) -> None:
        scene.step_ends("prepare", state)
        scene.apply()

    return play


def publish_is(state: Ended) -> Callable[[Scene], Any]:
    def play(scene: Scene) -> None:
        scene.prepare_succeeds()
        scene.ray_says("SUCCEEDED")
        scene.step_ends("submitter", Ended(0))
        scene.step_ends("publish", state)
        scene.apply()

    return play


def workers_are(state: Waiting) -> Callable[[Scene], Any]:
    def play(scene: Scene) -> None:
        scene.prepare_succeeds()
        scene.step_ends("worker", state)
        scene.apply()

    return play


def driver_fails(reason: str) -> Callable[[Scene], Any]:
    """The driver's last lines, as Ray quotes them, hold its own word about the failure. It is not tried again."""

    def play(scene: Scene) -> None:
        scene.prepare_succeeds()
        scene.step_ends("submitter", Ended(0))
        scene.apply({"spec.backoffLimit": 0})
        seen = FailureSeen(reason=FailureReason(reason), message="It is so.", step=7, node="gpu-0")
        scene.ray_says(
            "FAILED", f"Job entrypoint command failed, last available logs:\nsome line\n{scene.line(seen)}\n"
        )

    return play


def limited(path: str, kind: str, spec: dict[str, Any]) -> Callable[[Scene], Any]:
    """The namespace has a limit before the job comes; prepare succeeds where it may run."""

    def play(scene: Scene) -> None:
        collection = f"/api/v1/namespaces/{scene.namespace}/{path}"
        scene.plane.api.create(collection, {"kind": kind, "metadata": {"name": "small"}, "spec": spec})
        if kind == "ResourceQuota":
            found = f"{collection}/small"
            wait_until(lambda: scene.plane.api.get(found).get("status", {}).get("hard") == spec["hard"], "the quota")
        scene.prepare_succeeds()
        scene.apply()

    return play


def quota(resource: str) -> Callable[[Scene], Any]:
    """None of the resource is left."""
    return limited("resourcequotas", "ResourceQuota", {"hard": {resource: "0"}})


def no_claim(scene: Scene) -> None:
    scene.apply({"spec.model.uri": "pvc://weights/llama"})


NO_IMAGE = Waiting("ImagePullBackOff", 'Back-off pulling image "registry.internal/cloister/trainer@sha256:0123"')
NO_SECRET = Waiting("CreateContainerConfigError", 'secret "cloister-storage" not found')
SMALL = {"limits": [{"type": "Container", "max": {"memory": "1Gi"}}]}
SAID_BY_PREPARE = (
    "SpecInvalid", "LicenseNotAllowed", "LicenseUnknown", "ModelNotFound", "ModelUnsupported", "DatasetNotFound",
    "DatasetInvalid", "OutputExists", "DoesNotFit", "StorageAccessDenied", "StorageUnsupported", "StorageFull",
    "LocalDiskFull", "EgressNotEnforced",
)  # fmt: skip
SAID_BY_THE_DRIVER = ("LossDiverged", "SelfTestFailed", "EgressNotEnforced", "LocalDiskFull", "DoesNotFit")
SAID_BY_THE_DRIVER_RETRIED = (
    "GpuOutOfMemory", "GpuFault", "CollectiveTimeout", "WorkersLost", "NoProgress", "EgressUnproven",
    "StorageAccessDenied", "OutOfMemory", "NodeLost", "Internal",
)  # fmt: skip
SAID_BY_PUBLISH = ("EvaluationGateFailed", "AdapterInvalid", "SigningFailed", "OutputExists")
SEEN_ELSEWHERE = {
    "NameConflict": "below",
    "DeadlineExceeded": "test_operator_lifecycle",
    "StorageUnavailable": "test_operator_phases",
    "KubeRayMissing": "test_operator_absent_parts",
}
CASES = [
    *(Case("prepare says", prepare_is(failed(each)), "Failed", each, "It is so.") for each in SAID_BY_PREPARE),
    *(Case("the driver says", driver_fails(each), "Failed", each, "It is so.") for each in SAID_BY_THE_DRIVER),
    *(
        Case("the driver says", driver_fails(each), "Failed", each, "It is so. It failed, and spec.backoffLimit is 0.")
        for each in SAID_BY_THE_DRIVER_RETRIED
    ),
    *(Case("publish says", publish_is(failed(each)), "Failed", each, "It is so.") for each in SAID_BY_PUBLISH),
    Case(
        "prepare is tried again",
        prepare_is(failed("EgressUnproven")),
        "Preparing",
        "EgressUnproven",
        "It is tried again by itself.",
    ),
    Case(
        "prepare's memory",
        prepare_is(Ended(137, reason="OOMKilled")),
        "Preparing",
        "OutOfMemory",
        "ran out of memory and was killed. It is tried again by itself.",
    ),
    Case("prepare's image", prepare_is(NO_IMAGE), "Preparing", "ImagePullFailed", "Back-off pulling image"),
    Case("prepare's Secret", prepare_is(NO_SECRET), "Preparing", "SecretNotFound", '"cloister-storage" not found'),
    Case("prepare's claim", no_claim, "Preparing", "VolumeNotFound", "The claim weights does not exist"),
    Case("no pods", quota("pods"), "Preparing", "PodsForbidden", "exceeded quota: small"),
    Case("no Jobs", quota("count/jobs.batch"), "Preparing", "PodsForbidden", "refuses contracts-prepare"),
    Case(
        "small pods",
        limited("limitranges", "LimitRange", SMALL),
        "Preparing",
        "PodsForbidden",
        "maximum memory usage per Container is 1Gi",
    ),
    Case("no RayJobs", quota("count/rayjobs.ray.io"), "Queued", "PodsForbidden", "refuses contracts-1"),
    Case("no GPUs", quota("requests.nvidia.com/gpu"), "Queued", "PodsForbidden", "exceeded quota: small"),
    Case(
        "large workers",
        with_fields(
            {
                "spec.distribution.gpusPerWorker": 9,
                "spec.pods.worker.nodeSelector": {"kubernetes.io/hostname": "gpu-0"},
            }
        ),
        "Queued",
        "Unschedulable",
        "Insufficient nvidia.com/gpu",
    ),
    Case("the workers' image", workers_are(NO_IMAGE), "Queued", "ImagePullFailed", "Back-off pulling image"),
    Case("the workers' Secret", workers_are(NO_SECRET), "Queued", "SecretNotFound", '"cloister-storage" not found'),
    Case(
        "another profile",
        with_fields({"spec.distribution.profile": "other"}),
        "Failed",
        "PolicyDenied",
        "spec.distribution.profile: found other; the administrator allows default",
    ),
    Case(
        "another bucket",
        with_fields({"spec.model.uri": "s3://elsewhere/llama"}),
        "Failed",
        "PolicyDenied",
        "spec.model.uri: found s3://elsewhere/llama; the administrator allows",
    ),
]


@pytest.fixture(scope="module")
def scenes(new_scene: Callable[[], Scene]) -> dict[str, Scene]:
    """Where each case plays."""
    begun: dict[str, Scene] = {}
    for case in CASES:
        scene = begun[str(case)] = new_scene()
        case.play(scene)
    return begun


@pytest.mark.parametrize("case", CASES, ids=str)
def test_evidence_gives_its_reason(case: Case, scenes: dict[str, Scene]) -> None:
    scene = scenes[str(case)]
    status = scene.wait_for(case.phase, case.reason, case.words)
    wait_until(lambda: case.reason in told(scene), "the Event")
    if case.phase == "Failed":
        assert status["failure"]["reason"] == case.reason
        assert scene.conditions()["Failed"] == ("True", case.reason)


def test_the_table_has_every_reason() -> None:
    seen = {case.reason for case in CASES} | SEEN_ELSEWHERE.keys()
    assert {reason.value for reason in FailureReason} - seen == set()


def told(scene: Scene) -> set[str]:
    """The reasons of the Events about the job."""
    events = scene.plane.api.get(f"/api/v1/namespaces/{scene.namespace}/events")["items"]
    return {each["reason"] for each in events if each["involvedObject"]["uid"] == scene.job["metadata"]["uid"]}


def test_what_is_mended_is_waited_for_no_longer(scene: Scene) -> None:
    scene.step_ends("prepare", NO_IMAGE)
    scene.apply()
    scene.wait_for("Preparing", "ImagePullFailed")
    (job,) = scene.items("jobs")
    prepare, uid = job["metadata"]["name"], job["metadata"]["uid"]
    scene.step_ends("prepare", failed("EgressUnproven"))
    scene.wait_for("Preparing", "EgressUnproven")
    scene.prepare_succeeds()
    scene.ray_says("RUNNING")
    status = scene.wait_for("Training")
    assert status.get("retries", 0) == 0
    assert [each["metadata"]["uid"] for each in scene.items("jobs") if each["metadata"]["name"] == prepare] == [uid]


def test_the_second_job_with_the_same_output_is_refused(scene: Scene) -> None:
    same = {"spec.output.uri": f"s3://adapters/{scene.namespace}/same"}
    scene.preparing(same)
    other = Scene(scene.plane, scene.operator, scene.kubelet, scene.dashboard, scene.namespace, "other")
    other.apply(same)
    other.wait_for("Failed", "OutputExists", f"job contracts publishes to s3://adapters/{scene.namespace}/same")
    assert scene.status["phase"] == "Preparing"
    assert "other-prepare" not in scene.names("jobs")


def test_a_child_s_name_that_is_taken_is_never_touched(scene: Scene) -> None:
    create_batch_job(scene.plane, scene.namespace, "contracts-prepare")
    (foreign,) = scene.items("jobs")
    scene.apply()
    scene.wait_for("Failed", "NameConflict", f"There is a Job contracts-prepare in namespace {scene.namespace}")
    (still,) = scene.items("jobs")
    assert (still["metadata"]["uid"], still["spec"]) == (foreign["metadata"]["uid"], foreign["spec"])
    assert "ownerReferences" not in still["metadata"]


def test_a_pod_that_somebody_labels_like_the_job_s_own_proves_nothing(scene: Scene) -> None:
    scene.preparing()
    (real,) = scene.pods("prepare")
    pods = f"/api/v1/namespaces/{scene.namespace}/pods"
    labels = {key: value for key, value in real["metadata"]["labels"].items() if key.startswith("cloister.dev/")}
    forged = {
        "metadata": {"name": "forged", "labels": labels},
        "spec": pod_spec("prepare") | {"restartPolicy": "Never"},
    }
    scene.plane.api.create(pods, forged)
    scene.kubelet.order(failed("DatasetInvalid"), scene.namespace, pod="forged")
    wait_until(lambda: scene.plane.api.get(f"{pods}/forged")["status"]["phase"] == "Failed", "the forged evidence")
    scene.prepare_succeeds()
    scene.ray_says("RUNNING")
    scene.wait_for("Training")
