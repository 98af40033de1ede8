"""Why a job waits or failed: one enum, each value with what it means and what to do."""

from __future__ import annotations

from dataclasses import dataclass

from cloister_api.base import ApiEnum


class FailureReason(ApiEnum):
    """Why a step or a job failed."""

    SPEC_INVALID = "SpecInvalid"
    POLICY_DENIED = "PolicyDenied"
    NAME_CONFLICT = "NameConflict"
    LICENSE_NOT_ALLOWED = "LicenseNotAllowed"
    LICENSE_UNKNOWN = "LicenseUnknown"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_UNSUPPORTED = "ModelUnsupported"
    DATASET_NOT_FOUND = "DatasetNotFound"
    DATASET_INVALID = "DatasetInvalid"
    OUTPUT_EXISTS = "OutputExists"
    DOES_NOT_FIT = "DoesNotFit"
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 (a reason, not a password)
    VOLUME_NOT_FOUND = "VolumeNotFound"
    STORAGE_ACCESS_DENIED = "StorageAccessDenied"
    STORAGE_UNAVAILABLE = "StorageUnavailable"
    STORAGE_UNSUPPORTED = "StorageUnsupported"
    STORAGE_FULL = "StorageFull"
    LOCAL_DISK_FULL = "LocalDiskFull"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    PODS_FORBIDDEN = "PodsForbidden"
    EGRESS_NOT_ENFORCED = "EgressNotEnforced"
    EGRESS_UNPROVEN = "EgressUnproven"
    OUT_OF_MEMORY = "OutOfMemory"
    GPU_OUT_OF_MEMORY = "GpuOutOfMemory"
    GPU_FAULT = "GpuFault"
    COLLECTIVE_TIMEOUT = "CollectiveTimeout"
    NODE_LOST = "NodeLost"
    WORKERS_LOST = "WorkersLost"
    NO_PROGRESS = "NoProgress"
    LOSS_DIVERGED = "LossDiverged"
    SELF_TEST_FAILED = "SelfTestFailed"
    EVALUATION_GATE_FAILED = "EvaluationGateFailed"
    ADAPTER_INVALID = "AdapterInvalid"
    SIGNING_FAILED = "SigningFailed"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    KUBE_RAY_MISSING = "KubeRayMissing"
    INTERNAL = "Internal"

    @property
    def facts(self) -> ReasonFacts:
        """What the reason means, whether a retry can help, and what to do."""
        return FAILURE_FACTS[self]


class ConditionReason(ApiEnum):
    """Why a condition has its value, besides the failure reasons."""

    ACCEPTED = "Accepted"
    PREPARING = "Preparing"
    PREPARED = "Prepared"
    ALREADY_TRAINED = "AlreadyTrained"
    QUEUED = "Queued"
    ADMITTED = "Admitted"
    CPU_QUOTA = "CpuQuota"
    UNSCHEDULABLE = "Unschedulable"
    STARTING = "Starting"
    TRAINING = "Training"
    BACKING_OFF = "BackingOff"
    EVICTED = "Evicted"
    SUSPENDED = "Suspended"
    HELD = "Held"
    RESUMED = "Resumed"
    PUBLISHING = "Publishing"
    PUBLISHED = "Published"
    ALREADY_PUBLISHED = "AlreadyPublished"
    ENFORCED = "Enforced"
    NOT_ENFORCED = "NotEnforced"
    UNPROVEN = "Unproven"
    OPEN = "Open"
    COMPLETE = "Complete"
    FAILED = "Failed"

    @property
    def meaning(self) -> str:
        """What the reason means, in a sentence."""
        return _CONDITION_MEANINGS[self]


@dataclass(frozen=True)
class ReasonFacts:
    """A reason's meaning in a sentence, whether trying again can help, and what to do about it."""

    meaning: str
    action: str
    retryable: bool
    refusal: bool = False
    """The user's mistake: exit code 10 rather than 11."""


def _refused(meaning: str, action: str) -> ReasonFacts:
    return ReasonFacts(meaning, action, retryable=False, refusal=True)


def _failed(meaning: str, action: str) -> ReasonFacts:
    return ReasonFacts(meaning, action, retryable=False)


def _retried(meaning: str, action: str) -> ReasonFacts:
    return ReasonFacts(meaning, action, retryable=True)


_R = FailureReason
FAILURE_FACTS: dict[FailureReason, ReasonFacts] = {
    _R.SPEC_INVALID: _refused("A field of the job has a value that cannot work.", "Change the named field."),
    _R.POLICY_DENIED: _refused(
        "The administrator's settings do not allow what the job asks for.",
        "Ask for something that is allowed, or ask the administrator to allow it.",
    ),
    _R.NAME_CONFLICT: _refused(
        "An object with a child's name exists and belongs to somebody else.",
        "Rename the job, or delete the named object.",
    ),
    _R.LICENSE_NOT_ALLOWED: _refused(
        "The model's licence is not one that the administrator allows, or the model's files contradict model.license.",
        "Use another model, correct model.license, or ask the administrator.",
    ),
    _R.LICENSE_UNKNOWN: _refused(
        "No licence was found in the model's files.", "Add model.license with the licence's identifier."
    ),
    _R.MODEL_NOT_FOUND: _refused("There is no model at model.uri.", "Correct model.uri, or upload the model."),
    _R.MODEL_UNSUPPORTED: _refused(
        "The model's architecture or file format cannot be trained.", "Use the model or the conversion that is named."
    ),
    _R.DATASET_NOT_FOUND: _refused("There is no dataset at the given URI.", "Correct the URI, or upload the dataset."),
    _R.DATASET_INVALID: _refused(
        "Rows of the dataset cannot be used.", "Correct the named files and lines; the message gives each."
    ),
    _R.OUTPUT_EXISTS: _refused(
        "There is an adapter of another run at output.uri.",
        "Choose another output.uri, or set output.ifExists to Reuse or Replace.",
    ),
    _R.DOES_NOT_FIT: _refused(
        "The run needs more memory than the devices have.", "Use one of the settings that the message lists."
    ),
    _R.SECRET_NOT_FOUND: _refused("A Secret that the job names does not exist.", "Create the Secret."),
    _R.VOLUME_NOT_FOUND: _refused(
        "A claim that the job names does not exist.", "Create the claim, or correct its name."
    ),
    _R.STORAGE_ACCESS_DENIED: _refused(
        "The object store refused the credentials.", "Correct the credentials, or what they may do on the named URI."
    ),
    _R.STORAGE_UNAVAILABLE: _retried(
        "The object store does not answer.", "Check the store and the network; the job goes on by itself."
    ),
    _R.STORAGE_UNSUPPORTED: _refused(
        "The object store ignores conditional writes.", "Use a store and version from the documented list."
    ),
    _R.STORAGE_FULL: _failed("The object store is full.", "Free space; then go on with resumeFrom."),
    _R.LOCAL_DISK_FULL: _failed(
        "A node's local disk is full.", "Give the pods more ephemeral storage, or set model.cache."
    ),
    _R.IMAGE_PULL_FAILED: _failed("An image cannot be pulled.", "Correct the image's name or the pull secret."),
    _R.PODS_FORBIDDEN: _failed(
        "The cluster refuses the job's pods.", "Change the quota, LimitRange or policy that the message quotes."
    ),
    _R.EGRESS_NOT_ENFORCED: _failed(
        "The network plugin lets pods reach what no policy allows.",
        "Install a network plugin that enforces NetworkPolicies.",
    ),
    _R.EGRESS_UNPROVEN: _retried(
        "It could not be shown that egress is restricted.", "Check that pods reach the operator's control port."
    ),
    _R.OUT_OF_MEMORY: _retried("A process ran out of host memory.", "Give the named pods more memory."),
    _R.GPU_OUT_OF_MEMORY: _retried(
        "A GPU ran out of memory.", "Set training.microBatchTokens lower, or gradientCheckpointing to Always."
    ),
    _R.GPU_FAULT: _retried("A GPU reported a fault.", "Have the named node checked."),
    _R.COLLECTIVE_TIMEOUT: _retried("Workers lost each other.", "Check the network between the named nodes."),
    _R.NODE_LOST: _retried("A node went away.", "Nothing; the run goes on from its newest checkpoint."),
    _R.WORKERS_LOST: _retried("Worker processes ended.", "Nothing; the run goes on from its newest checkpoint."),
    _R.NO_PROGRESS: _retried("No step was made for a long time.", "Look at the stored stacks of all ranks."),
    _R.LOSS_DIVERGED: _failed(
        "The loss or a gradient is no longer a finite number.",
        "Lower training.learningRate, and look at the rows of the named step.",
    ),
    _R.SELF_TEST_FAILED: _failed(
        "A check of the training set-up failed.", "The message names the check; report it with the model's name."
    ),
    _R.EVALUATION_GATE_FAILED: _failed(
        "The adapter did not improve enough to be published.",
        "Lower evaluation.gate, or train longer or on more data.",
    ),
    _R.ADAPTER_INVALID: _failed("The trained adapter failed a check.", "The message names the check."),
    _R.SIGNING_FAILED: _failed("The adapter could not be signed.", "Check the key in the signing Secret."),
    _R.DEADLINE_EXCEEDED: _failed(
        "The job took longer than activeDeadlineSeconds, or publishing longer than an hour.",
        "Raise activeDeadlineSeconds where that was the limit, and go on with resumeFrom.",
    ),
    _R.KUBE_RAY_MISSING: _retried("KubeRay is not installed.", "Install KubeRay 1.6 or newer."),
    _R.INTERNAL: _retried("An unexpected error.", "Report it with the log."),
}


_C = ConditionReason
_CONDITION_MEANINGS: dict[ConditionReason, str] = {
    _C.ACCEPTED: "The job's fields and the administrator's settings allow it to run.",
    _C.PREPARING: "The inputs are being checked and tokenised.",
    _C.PREPARED: "The inputs are checked, the tokens stored, the plan is in status.",
    _C.ALREADY_TRAINED: "The run in resumeFrom has trained this adapter to its end; publishing is all that is left.",
    _C.QUEUED: "The run waits for quota in its Kueue queue.",
    _C.ADMITTED: "Kueue gave the run its quota.",
    _C.CPU_QUOTA: "prepare or publish waits for CPU quota in the administrator's queue.",
    _C.UNSCHEDULABLE: "No node has room for the pods; the message quotes the scheduler.",
    _C.STARTING: "The pods exist and are getting their images and volumes.",
    _C.TRAINING: "Steps are being made.",
    _C.BACKING_OFF: "The next attempt starts after a pause.",
    _C.EVICTED: "Kueue took the quota back; the run goes on when there is quota again.",
    _C.SUSPENDED: "The job is suspended until spec.suspend is set back to false.",
    _C.HELD: "The plan is ready, and the job waits until spec.hold is removed.",
    _C.RESUMED: "The run goes on from an earlier checkpoint.",
    _C.PUBLISHING: "The adapter is being verified and published.",
    _C.PUBLISHED: "current.json names the adapter's folder.",
    _C.ALREADY_PUBLISHED: "An adapter made from the same inputs and settings was there already; nothing was trained.",
    _C.ENFORCED: "Every process showed that it reaches nothing outside.",
    _C.NOT_ENFORCED: "A process reached what no policy allows.",
    _C.UNPROVEN: "It could not be shown that egress is restricted.",
    _C.OPEN: "The job asked for open egress, and the administrator allows it.",
    _C.COMPLETE: "The adapter is published.",
    _C.FAILED: "The job ended without an adapter; status.failure says why.",
}
