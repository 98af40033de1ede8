"""Where a job runs and what it leaves: workers, pods, output, storage, network."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from cloister_api.base import ApiEnum, ApiModel, Name, Quantity, Rule, ShortText, StoreUri

ResourceList = Annotated[
    dict[str, Annotated[int | str, Field(json_schema_extra={"x-kubernetes-int-or-string": True})]],
    Field(max_length=16),
]


class Offload(ApiEnum):
    """What may lie in host memory."""

    NONE = "None"
    PARAMETERS = "Parameters"


class Distribution(ApiModel):
    """Workers and devices. One worker is one pod on one node."""

    profile: Annotated[str, Field(min_length=1, max_length=63)] = "default"
    """The administrator's worker profile: node selector, GPU type, network devices, tolerations."""
    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    """Number of worker pods."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=64)] = 1
    """GPUs of each worker; 0 trains on CPUs."""
    min_workers: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Go on with fewer workers, down to this many, when some are lost. Absent: all workers are needed."""
    gpu_memory: Quantity | None = None
    """Memory of one GPU, for example 80Gi. Absent: the profile's."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] | None = None
    """DeepSpeed ZeRO stage. Absent: 2, or 3 when the base model does not fit into one GPU."""
    offload: Offload = Offload.NONE
    """Parameters puts the base model's shards into host memory (stage 3)."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.minWorkers) || self.minWorkers <= self.workers",
            "distribution.minWorkers is at most distribution.workers",
            lambda distribution: distribution.min_workers is None or distribution.min_workers <= distribution.workers,
        ),
        Rule(
            "self.offload == 'None' || (has(self.zeroStage) && self.zeroStage == 3)",
            "distribution.offload Parameters needs distribution.zeroStage 3",
            lambda distribution: distribution.offload == Offload.NONE or distribution.zero_stage == 3,
        ),
    )


class Toleration(ApiModel):
    """A Kubernetes toleration; only those that the administrator allows."""

    key: ShortText | None = None
    """The taint's key."""
    operator: ShortText | None = None
    """Exists or Equal."""
    value: ShortText | None = None
    """The taint's value."""
    effect: ShortText | None = None
    """NoSchedule, PreferNoSchedule or NoExecute."""
    toleration_seconds: int | None = None
    """How long NoExecute is tolerated."""


class Resources(ApiModel):
    """Requests and limits of a pod's container."""

    requests: ResourceList | None = None
    """What the scheduler sets aside."""
    limits: ResourceList | None = None
    """What the container may use at most."""


class PodSettings(ApiModel):
    """What a job may choose for one kind of its pods."""

    resources: Resources | None = None
    """Absent: the profile's, or what the plan needs."""
    node_selector: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=16)] | None = None
    """Labels that the node must have, besides the profile's."""
    tolerations: Annotated[list[Toleration], Field(max_length=16)] | None = None
    """Taints that the pod tolerates, besides the profile's."""
    affinity: (
        Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})] | None
    ) = None
    """A Kubernetes affinity."""
    priority_class_name: Name | None = None
    """A priority class that the administrator allows."""


class Pods(ApiModel):
    """Settings by kind of pod."""

    worker: PodSettings = PodSettings()
    """Ray workers, which train."""
    head: PodSettings = PodSettings()
    """The Ray head, which drives the run."""
    prepare: PodSettings = PodSettings()
    """The pod that checks and tokenises."""
    publish: PodSettings = PodSettings()
    """The pod that verifies and publishes."""


class IfExists(ApiEnum):
    """What happens when the output already holds an adapter of another run."""

    FAIL = "Fail"
    REUSE = "Reuse"
    REPLACE = "Replace"


class Server(ApiEnum):
    """An inference server that must be able to load the adapter."""

    VLLM = "VLLM"
    LLAMA_CPP = "LlamaCpp"


class KeepRun(ApiEnum):
    """When tokens and checkpoints stay."""

    ON_FAILURE = "OnFailure"
    ALWAYS = "Always"


class Signing(ApiModel):
    """Signing of the published folder."""

    secret_name: Name
    """Secret with the key private.pem, mounted in publish alone."""


class Output(ApiModel):
    """What the job leaves."""

    uri: StoreUri
    """The adapter's prefix: current.json names the immutable folder under it."""
    if_exists: IfExists = IfExists.FAIL
    """Fail; Reuse an adapter made from the same inputs and settings; or Replace what the pointer names."""
    merged_model: bool = False
    """Write the base model with the adapter merged into it, too."""
    servable_by: Annotated[list[Server], Field(max_length=4)] | None = None
    """Servers that must be able to load the adapter; checked before training."""
    signing: Signing | None = None
    """Absent: the adapter is not signed."""
    keep_run: KeepRun = KeepRun.ON_FAILURE
    """OnFailure deletes tokens and checkpoints after publishing; Always keeps them."""


class Storage(ApiModel):
    """Access to the object store."""

    secret_name: Name = "cloister-storage"  # noqa: S105 (the name of a Secret)
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and any of AWS_SESSION_TOKEN, AWS_ENDPOINT_URL_S3,
    AWS_REGION and ca.crt."""
    run_uri: StoreUri | None = None
    """Where checkpoints, tokens and logs lie. Absent: the administrator's, or output.uri/runs in local runs."""


class Egress(ApiEnum):
    """What the job's pods may reach."""

    RESTRICTED = "Restricted"
    OPEN = "Open"


class Network(ApiModel):
    """Network access of the job's pods."""

    egress: Egress = Egress.RESTRICTED
    """Restricted: the object store, DNS and the job's own pods only, proven in every run. Open: only where the
    administrator allows it."""


class ResumeFrom(ApiModel):
    """An earlier run to go on from."""

    uri: StoreUri
    """The run folder of a failed or deleted job with the same model, tokens, lora and batch settings."""


class Provenance(ApiModel):
    """Stated by whoever applies the job; copied into the manifest and the audit log, not verified."""

    requested_by: ShortText | None = None
    """Who asked for it."""
    ticket: ShortText | None = None
    """The request's number or address."""
    source_revision: ShortText | None = None
    """Revision of the repository that holds the manifest."""
    data_classification: ShortText | None = None
    """Classification of the dataset."""


class Hold(ApiEnum):
    """Where the job stops until it is released."""

    NONE = "None"
    BEFORE_TRAINING = "BeforeTraining"


Seconds = Annotated[int, Field(ge=0, le=315_360_000)]
PositiveSeconds = Annotated[int, Field(ge=1, le=315_360_000)]
