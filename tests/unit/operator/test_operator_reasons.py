"""Every reason of the enum, from the evidence that gives it; in every state a message that says the next step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from cloister_api.events import CheckpointSaved, FailureSeen
from cloister_api.reasons import ConditionReason, FailureReason
from cloister_operator.decide.messages import NEXT_STEPS
from cloister_operator.names import Step
from support.operator_world import PREPARED, START, World

TAINTED = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
SAID_BY_PREPARE = [
    "SpecInvalid",
    "LicenseNotAllowed",
    "LicenseUnknown",
    "ModelNotFound",
    "ModelUnsupported",
    "DatasetNotFound",
    "DatasetInvalid",
    "OutputExists",
    "DoesNotFit",
    "StorageAccessDenied",
    "StorageUnsupported",
    "StorageFull",
    "LocalDiskFull",
    "EgressNotEnforced",
    "SigningFailed",
]
SAID_BY_THE_DRIVER = ["LossDiverged", "SelfTestFailed", "EgressNotEnforced", "LocalDiskFull", "DoesNotFit"]
SAID_BY_THE_DRIVER_RETRIED = [
    "GpuOutOfMemory",
    "GpuFault",
    "CollectiveTimeout",
    "WorkersLost",
    "NoProgress",
    "EgressUnproven",
    "StorageAccessDenied",
    "OutOfMemory",
    "NodeLost",
    "Internal",
]
SAID_BY_PUBLISH = ["EvaluationGateFailed", "AdapterInvalid", "SigningFailed", "OutputExists"]


@dataclass(frozen=True)
class Case:
    """Evidence, and where it leads: a phase with a reason, and words that the message has."""

    name: str
    play: Callable[[World], Any]
    phase: str
    reason: str
    words: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.phase} {self.reason}"


def preparing(world: World) -> dict[str, Any]:
    world.settle()
    return world.step_job(Step.PREPARE)


def waiting(reason: str, message: str = "no such thing") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def stuck(minutes: int, role: str = "prepare", **pod: Any) -> Callable[[World], Any]:
    """A pod of prepare, or of the Ray cluster, that does not start for so long."""

    def play(world: World) -> None:
        if role == "prepare":
            world.pod(preparing(world), role, phase="Pending", **pod)
        else:
            world.prepared()
            world.pod(world.cluster(), role, phase="Pending", **pod)
            world.ray("", "Initializing")
        world.settle()
        world.pass_time(minutes=minutes)
        world.settle()

    return play


def unschedulable(message: str) -> list[dict[str, Any]]:
    return [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]


def out_of_memory(world: World) -> None:
    """The Job makes the next pod after a pause."""
    world.pod(preparing(world), "prepare", phase="Failed", container="prepare", state=OOM)


def said(step: Step, reason: str) -> Callable[[World], Any]:
    def play(world: World) -> None:
        preparing(world)
        if step is Step.PUBLISH:
            world.succeed(Step.PREPARE, PREPARED)
            world.settle()
            world.ray("SUCCEEDED")
            world.settle()
        world.refuse(step, reason, exit_code=10 if FailureReason(reason).facts.refusal else 11)

    return play


def driver_said(reason: str) -> Callable[[World], Any]:
    def play(world: World) -> None:
        world.prepared()
        world.running()
        line = world.line(FailureSeen(reason=FailureReason(reason), message="It is so.", step=7, node="node-7"))
        message = f"Job entrypoint command failed with exit code 12, last available logs:\nsome line\n{line}\n"
        world.ray("FAILED", "Failed", reason="AppFailed", message=message)

    return play


def forbidden(minutes: int) -> Callable[[World], Any]:
    def play(world: World) -> None:
        world.warn(preparing(world), "FailedCreate", 'pods "x" is forbidden: exceeded quota: small')
        world.settle()
        world.pass_time(minutes=minutes)

    return play


def workers_forbidden(minutes: int) -> Callable[[World], Any]:
    """KubeRay could make the head, and not the workers."""

    def play(world: World) -> None:
        world.prepared()
        world.pod(world.cluster(), "head")
        since = world.now.strftime("%Y-%m-%dT%H:%M:%SZ")
        failure = {"type": "ReplicaFailure", "status": "True", "lastTransitionTime": since, "message": "exceeded quota"}
        world.cluster()["status"]["conditions"].append(failure)
        world.ray("", "Initializing")
        world.settle()
        world.pass_time(minutes=minutes)

    return play


def refused_by_admission(world: World) -> None:
    world.refused["contracts-prepare"] = "admission webhook denied the request: no Jobs on Sundays"


def deny_profile(world: World) -> None:
    world.job["spec"]["distribution"] = {"profile": "other"}


def somebody_elses(world: World) -> None:
    world.add("Job", "contracts-prepare")


def no_ray(world: World) -> None:
    world.ray_installed = False
    world.prepared()


def too_long(world: World) -> None:
    world.change("activeDeadlineSeconds", 60)
    world.pod(preparing(world), "prepare")
    world.settle()
    world.pass_time(seconds=61)


def store_silent(hours: int) -> Callable[[World], Any]:
    def play(world: World) -> None:
        preparing(world)
        for _ in range(hours * 8 or 1):
            world.refuse(Step.PREPARE, "StorageUnavailable", exit_code=12)
            world.step()
            if hours:
                world.pass_time(minutes=10)
                world.settle()

    return play


def killed_worker(state: dict[str, Any], **pod: Any) -> Callable[[World], Any]:
    """KubeRay deletes a failed pod within a second; the attempt fails a little later without a word."""

    def play(world: World) -> None:
        world.prepared()
        world.running()
        world.settle()
        gone = world.pod(world.cluster(), "worker", phase="Failed", state=state, node="node-7", **pod)
        world.settle()
        del world.objects["Pod", gone["metadata"]["name"]]
        world.settle()
        world.ray("FAILED", "Failed", reason="AppFailed", message="Job entrypoint command failed with exit code 1")

    return play


def queued(world: World) -> dict[str, Any]:
    world.job["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "research"}
    world.prepared()
    world.ray_job["spec"]["suspend"] = True
    world.ray("", "Suspended")
    condition = {"type": "QuotaReserved", "status": "False", "message": "couldn't assign flavors to pod set workers"}
    return world.add("Workload", "w", world.ray_job, status={"conditions": [condition]})


def evicted(world: World) -> None:
    world.prepared()
    world.running()
    world.settle()
    world.ray_job["spec"]["suspend"] = True
    world.ray("", "Suspended")


def cpu_quota(world: World) -> None:
    preparing(world)["spec"]["suspend"] = True


def backing_off(world: World) -> None:
    killed_worker({"terminated": {"exitCode": 137, "reason": "OOMKilled"}})(world)


def suspended(world: World) -> None:
    world.change("suspend", True)


def held(world: World) -> None:
    world.change("hold", "BeforeTraining")
    world.prepared()


def changed_hands(world: World) -> None:
    world.prepared()
    world.ray_job["spec"]["managedBy"] = "kueue.x-k8s.io/multikueue"


def no_word_of_ray(world: World) -> None:
    world.prepared()
    world.cluster()
    world.ray("", "Running")
    world.settle()
    world.pass_time(minutes=10)


def earlier_job(world: World) -> None:
    world.add("Job", "contracts-prepare", {**world.job, "metadata": {"name": "contracts", "uid": "earlier"}})


OOM = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
CASES = [
    *(Case("prepare says", said(Step.PREPARE, reason), "Failed", reason, "It is so.") for reason in SAID_BY_PREPARE),
    *(Case("publish says", said(Step.PUBLISH, reason), "Failed", reason, "It is so.") for reason in SAID_BY_PUBLISH),
    *(Case("driver says", driver_said(reason), "Failed", reason, "It is so.") for reason in SAID_BY_THE_DRIVER),
    *(
        Case(f"driver says {reason}", driver_said(reason), "Queued", "BackingOff", "It is so.")
        for reason in SAID_BY_THE_DRIVER_RETRIED
    ),
    Case("driver says", driver_said("StorageUnavailable"), "Queued", "StorageUnavailable", "It is so."),
    Case("unknown profile", deny_profile, "Failed", "PolicyDenied", "the administrator allows default"),
    Case("MultiKueue", changed_hands, "Failed", "PolicyDenied", "another cluster"),
    Case("a Job of somebody else", somebody_elses, "Failed", "NameConflict", "Job contracts-prepare"),
    Case("a Job of an earlier job", earlier_job, "Preparing", "Starting", "earlier job"),
    Case("no KubeRay", no_ray, "Queued", "KubeRayMissing", "no RayJobs"),
    Case("deadline", too_long, "Failed", "DeadlineExceeded", "activeDeadlineSeconds is 60"),
    Case("store silent", store_silent(0), "Preparing", "StorageUnavailable", "tried again at"),
    Case("store silent for a day", store_silent(25), "Failed", "StorageUnavailable", "has not answered since"),
    Case(
        "no Secret",
        stuck(1, state=waiting("CreateContainerConfigError", 'secret "cloister-storage" not found')),
        "Preparing",
        "SecretNotFound",
        "given up at",
    ),
    Case(
        "no Secret for 10 minutes",
        stuck(10, state=waiting("CreateContainerConfigError", "couldn't find key K in Secret legal/cloister-storage")),
        "Failed",
        "SecretNotFound",
    ),
    Case(
        "no claim for 10 minutes",
        stuck(10, node="", conditions=unschedulable('persistentvolumeclaim "models" not found')),
        "Failed",
        "VolumeNotFound",
        "claim models",
    ),
    Case("no image", stuck(1, state=waiting("ErrImagePull")), "Preparing", "ImagePullFailed", "given up at"),
    Case("no image for 10 minutes", stuck(10, state=waiting("ImagePullBackOff")), "Failed", "ImagePullFailed"),
    Case("no image on the head", stuck(10, "head", state=waiting("ErrImagePull")), "Failed", "ImagePullFailed"),
    Case("prepare out of memory", out_of_memory, "Preparing", "OutOfMemory", "It is tried again by itself."),
    Case("quota refuses", forbidden(1), "Preparing", "PodsForbidden", "exceeded quota: small"),
    Case("quota refuses for 10 minutes", forbidden(10), "Failed", "PodsForbidden", "exceeded quota: small"),
    Case("admission refuses", refused_by_admission, "Preparing", "PodsForbidden", "no Jobs on Sundays"),
    Case("quota refuses workers", workers_forbidden(1), "Queued", "PodsForbidden", "exceeded quota"),
    Case("quota refuses workers for 10 minutes", workers_forbidden(10), "Failed", "PodsForbidden", "exceeded quota"),
    Case(
        "no node",
        stuck(
            60, "worker", node="", conditions=unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu")
        ),
        "Queued",
        "Unschedulable",
        "Insufficient nvidia.com/gpu",
    ),
    Case("a worker out of memory", backing_off, "Queued", "BackingOff", "node-7"),
    Case("a node lost", killed_worker({}, conditions=[TAINTED]), "Queued", "BackingOff", "node went away"),
    Case("no word of Ray", no_word_of_ray, "Queued", "BackingOff", "8265"),
    Case("in a queue", queued, "Queued", "Queued", "1 nvidia.com/gpu in queue research since 2026-01-02 02:10 UTC"),
    Case("evicted", evicted, "Queued", "Evicted"),
    Case("no CPU quota", cpu_quota, "Preparing", "CpuQuota", "waits for quota"),
    Case("suspended", suspended, "Suspended", "Suspended"),
    Case("held", held, "Held", "Held"),
    Case("the head starts", stuck(1, "head"), "Queued", "Starting", "0 of 2 Ray pods"),
]


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
