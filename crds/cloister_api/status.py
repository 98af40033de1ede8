"""What the operator reports about a job."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from cloister_api.base import ApiEnum, ApiModel
from cloister_api.reasons import FailureReason

Timestamp = Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})]
Sentence = Annotated[str, Field(max_length=4096)]
Uri = Annotated[str, Field(max_length=1280)]
Text = Annotated[str, Field(max_length=1024)]
Count = Annotated[int, Field(ge=0)]


class Phase(ApiEnum):
    """Where a job stands."""

    PENDING = "Pending"
    SUSPENDED = "Suspended"
    HELD = "Held"
    PREPARING = "Preparing"
    QUEUED = "Queued"
    TRAINING = "Training"
    PUBLISHING = "Publishing"
    COMPLETE = "Complete"
    FAILED = "Failed"


class ConditionType(ApiEnum):
    """What a condition speaks of."""

    ACCEPTED = "Accepted"
    PREPARED = "Prepared"
    QUOTA_RESERVED = "QuotaReserved"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    EGRESS_RESTRICTED = "EgressRestricted"
    PUBLISHED = "Published"
    COMPLETE = "Complete"
    FAILED = "Failed"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class Condition(ApiModel):
    """A Kubernetes condition."""

    type: ConditionType
    """What the condition speaks of."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Text
    """Why, as one word."""
    message: Sentence = ""
    """Why, as a sentence with the next step."""
    last_transition_time: Timestamp
    """When status last changed."""
    observed_generation: Count | None = None
    """The generation that was looked at."""


class Attempt(ApiModel):
    """One RayJob."""

    number: Annotated[int, Field(ge=1)]
    """Ordinal, never used again."""
    start: Timestamp | None = None
    """When it was created."""
    end: Timestamp | None = None
    """When it ended."""
    restarts: Count = 0
    """How often it started again inside: a lost head, an eviction."""
    reason: Text | None = None
    """Why it ended."""
    node: Text | None = None
    """The node that the failure names."""
    gpu_seconds: Count = 0
    """GPU time."""
    checkpoint_step: Count | None = None
    """Step of its newest checkpoint."""
    cluster_uid: Text | None = None
    """UID of its RayCluster: the next attempt waits for that one's pods."""


class PlanStatus(ApiModel):
    """What prepare chose and counted."""

    zero_stage: Count
    """DeepSpeed ZeRO stage."""
    micro_batch_tokens: Count
    """Tokens in one forward pass on one device."""
    gradient_checkpointing: bool
    """Whether activations are recomputed."""
    total_steps: Count
    """Optimizer steps."""
    trainable_parameters: Count
    """Parameters of the adapter."""
    base_parameters: Count
    """Parameters of the base model."""
    examples: Count
    """Training examples in an epoch."""
    tokens: Count
    """Tokens in an epoch."""
    trained_tokens: Count
    """Tokens in an epoch that carry loss."""
    estimated_gpu_memory_bytes: Count = 0
    """Peak memory of one GPU."""
    warnings: Annotated[list[Sentence], Field(max_length=32)] = []
    """What is worth knowing before training."""


class ProgressStatus(ApiModel):
    """How far training is; may lag."""

    step: Count
    """Optimizer steps made."""
    total_steps: Count
    """Optimizer steps in all."""
    percent: Annotated[int, Field(ge=0, le=100)]
    """step of totalSteps."""
    summary: Text
    """percent as text, for kubectl get."""
    epoch: float
    """Passes over the examples made."""
    loss: float
    """Training loss of the newest step, per trained token."""
    validation_loss: float | None = None
    """Newest validation loss."""
    learning_rate: float
    """Learning rate of the newest step."""
    tokens_per_second: float
    """Processed tokens per second over all workers."""
    eta: Text
    """Time left."""
    workers: Count | None = None
    """Workers that made the newest step, where those are fewer than distribution.workers. Absent: all did."""
    updated_at: Timestamp
    """When this was seen."""


class CheckpointStatus(ApiModel):
    """The newest complete checkpoint."""

    step: Count
    """Its step."""
    uri: Uri
    """Its folder."""
    time: Timestamp
    """When it was completed."""


class GateResult(ApiEnum):
    """Whether the adapter reached evaluation.gate."""

    PASSED = "Passed"
    FAILED = "Failed"
    NONE = "None"


class ExactMatch(ApiModel):
    """Held-out rows whose greedy answer equals the expected one."""

    rows: Count
    """Rows asked."""
    before: Count
    """Equal answers of the base model."""
    after: Count
    """Equal answers with the adapter."""


class EvaluationStatus(ApiModel):
    """What was measured on held-out examples."""

    base_loss: float | None = None
    """Loss of the base model."""
    loss: float | None = None
    """Loss with the published adapter."""
    exact_match: ExactMatch | None = None
    """Counted when evaluation.samples is set."""
    gate: GateResult = GateResult.NONE
    """Whether evaluation.gate was reached."""


class LicenseStatus(ApiModel):
    """The base model's licence and what proves it."""

    id: Text
    """Identifier."""
    evidence: Text
    """Where it was found, or that it was only stated."""
    file: Text | None = None
    """The file that holds it."""
    sha256: Text | None = None
    """Digest of that file."""


class OutputStatus(ApiModel):
    """What was published."""

    uri: Uri
    """The immutable folder."""
    manifest_digest: Text
    """sha256 of manifest.json."""
    adapter_digest: Text
    """sha256 of adapter_model.safetensors."""
    size_bytes: Count
    """Size of the folder."""


class FailureStatus(ApiModel):
    """Why the job failed."""

    reason: FailureReason
    """One word."""
    message: Sentence
    """A sentence with what to do, and the resumeFrom line where a checkpoint exists."""
    retryable: bool
    """Whether another attempt could succeed."""
    step: Count | None = None
    """Step at which it failed."""
    node: Text | None = None
    """Node on which it failed."""
    logs_uri: Uri | None = None
    """Stored logs."""
    log_tail: Annotated[str, Field(max_length=2048)] | None = None
    """Last lines of Cloister's own code; never row content."""


class FineTuneJobStatus(ApiModel):
    """What the operator has seen and done."""

    phase: Phase | None = None
    """Where the job stands."""
    reason: Text | None = None
    """Why it waits or failed, as one word; empty while it advances."""
    message: Sentence | None = None
    """Why it waits, failed or was reused, with the next step; empty while it advances."""
    waiting_since: Timestamp | None = None
    """Since when the job has waited for what failed or is missing; the administrator's patience counts from here."""
    observed_generation: Count | None = None
    """The generation that was looked at."""
    start_time: Timestamp | None = None
    """When the job was accepted."""
    completion_time: Timestamp | None = None
    """When it ended."""
    resolved: (
        Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})] | None
    ) = None
    """Every value chosen."""
    images: Annotated[dict[str, Text], Field(max_length=8)] | None = None
    """Images by role, with digests."""
    attempt: Count | None = None
    """Ordinal of the newest RayJob."""
    retries: Count | None = None
    """Consecutive attempts without a newer checkpoint."""
    attempts: (
        Annotated[
            list[Attempt],
            Field(
                max_length=10,
                json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["number"]},
            ),
        ]
        | None
    ) = None
    """The newest attempts."""
    gpu_seconds: Count | None = None
    """GPU time of all attempts."""
    active_seconds: Count | None = None
    """How long it prepared and trained until activeSince; activeDeadlineSeconds counts this, and no queueing."""
    active_since: Timestamp | None = None
    """Since when prepare runs, or it trains, or all workers have a node. Absent: it waits, publishes or has ended."""
    storage_unavailable_since: Timestamp | None = None
    """Since when the object store has not answered. Absent: it answers."""
    conditions: (
        Annotated[
            list[Condition],
            Field(
                max_length=16,
                json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
            ),
        ]
        | None
    ) = None
    """Conditions by type."""
    plan: PlanStatus | None = None
    """What prepare chose and counted."""
    progress: ProgressStatus | None = None
    """How far training is."""
    checkpoint: CheckpointStatus | None = None
    """The newest complete checkpoint."""
    evaluation: EvaluationStatus | None = None
    """What was measured."""
    license: LicenseStatus | None = None
    """The base model's licence."""
    output: OutputStatus | None = None
    """What was published."""
    failure: FailureStatus | None = None
    """Why the job failed."""
