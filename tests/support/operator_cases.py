"""What a job may meet, and the reason that it gives: one case for each reason of the enum at least."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cloister_operator.names import Step
from support.operator_plays import (
    TAINTED,
    backing_off,
    changed_hands,
    cpu_quota,
    crashing_worker,
    deny_profile,
    driver_said,
    earlier_job,
    evicted,
    forbidden,
    held,
    killed_worker,
    no_ray,
    no_word_of_ray,
    out_of_memory,
    queued,
    refused_by_admission,
    said,
    somebody_elses,
    store_silent,
    stuck,
    suspended,
    too_long,
    unschedulable,
    waiting,
    workers_forbidden,
)
from support.operator_world import World

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
    Case(
        "a worker that never starts",
        crashing_worker("Error", 1),
        "Queued",
        "Internal",
        "-c ray-worker --previous`",
    ),
    Case(
        "a worker without memory",
        crashing_worker("OOMKilled", 137),
        "Queued",
        "OutOfMemory",
        "whenever it starts",
    ),
    Case("workers without a head", crashing_worker("Error", 1, head="Pending"), "Queued", "Starting"),
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
