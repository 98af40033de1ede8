"""Where a job runs and what it leaves: workers, pods, output, storage, network."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from cloister_api.base import (
    LABEL_VALUE_PATTERN,
    ApiEnum,
    ApiModel,
    Name,
    Quantity,
    Rule,
    ShortText,
    StoreUri,
)

ResourceQuantity = Annotated[
    Annotated[int, Field(ge=0)] | Quantity, Field(json_schema_extra={"x-kubernetes-int-or-string": True})
]
"""A quantity as pods take it: 8, "500m", "64Gi"."""

ResourceList = Annotated[dict[str, ResourceQuantity], Field(max_length=16)]
LabelValue = Annotated[str, Field(max_length=63, pattern=LABEL_VALUE_PATTERN)]

KEY_MAX_LENGTH = 317
"""Longest name of a label or a resource: a prefix of 253 characters, a slash, a name of 63."""


def _short_keys(field: str, attribute: str) -> Rule:
    """The keys of an optional map are no longer than Kubernetes allows; a schema alone cannot say so."""
    return Rule(
        f"!has(self.{field}) || self.{field}.all(key, size(key) <= {KEY_MAX_LENGTH})",
        f"names in {field} have at most {KEY_MAX_LENGTH} characters",
        lambda model: all(len(key) <= KEY_MAX_LENGTH for key in getattr(model, attribute) or {}),
    )


class Offload(ApiEnum):
    """What may lie in host memory."""

    NONE = "None"
    PARAMETERS = "Parameters"


class Distribution(ApiModel):
    """Workers and devices. One worker is one pod on one node."""

    profile: Annotated[str, Field(min_length=1, max_length=63)] = "default"
    """Name of the administrator's worker profile: node selector, GPU type and memory, network devices, tolerations."""
    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    """Number of worker pods, each on a node of its own."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=64)] = 1
    """GPUs of each worker; 0 trains on CPUs."""
    min_workers: Annotated[int, Field(ge=1, le=1024)] | None = None
    """A run that loses workers goes on with so few if it must, and with more once they are back. The plan fits so few,
    too. Absent: as many as workers."""
    gpu_memory: Quantity | None = None
    """Memory of one GPU for the memory plan, for example 80Gi. Absent: the profile's."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] | None = None
    """DeepSpeed ZeRO stage: 0 to 2 hold the base model whole on every GPU, 3 shards it over all of them. Absent: 2, or
    3 when the base model does not fit into one GPU."""
    offload: Offload = Offload.NONE
    """What lies in host memory: None; or Parameters, the base model's shards, at zeroStage 3."""

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


class TolerationOperator(ApiEnum):
    """How a toleration compares."""

    EXISTS = "Exists"
    EQUAL = "Equal"


class TaintEffect(ApiEnum):
    """What a taint does to pods that do not tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(ApiModel):
    """A Kubernetes toleration; only those that the administrator allows."""

    key: ShortText | None = None
    """The taint's key. Absent: all keys, with operator Exists."""
    operator: TolerationOperator | None = None
    """Exists: any value. Equal: the same value. Absent: Equal."""
    value: ShortText | None = None
    """The taint's value, with operator Equal. Absent: the empty value."""
    effect: TaintEffect | None = None
    """The taint's effect. Absent: all effects."""
    toleration_seconds: Annotated[int, Field(ge=0, le=315_360_000)] | None = None
    """How long effect NoExecute is tolerated. Absent: for ever."""


class Resources(ApiModel):
    """Requests and limits of a pod's container."""

    requests: ResourceList | None = None
    """What the scheduler sets aside, for example {cpu: 8, memory: 64Gi}. Absent: the limits."""
    limits: ResourceList | None = None
    """What the container may use at most, for example {memory: 64Gi}. Absent: no limit of the job's own."""

    rules: ClassVar[tuple[Rule, ...]] = (_short_keys("requests", "requests"), _short_keys("limits", "limits"))


KubernetesObject = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]
"""A part of a pod's specification that is handed on as it is and checked when the pod is made."""

Terms = Annotated[list[KubernetesObject], Field(max_length=16)]


class NodeAffinity(ApiModel):
    """Nodes that a pod must or would rather run on."""

    required_during_scheduling_ignored_during_execution: KubernetesObject | None = None
    """A node selector (core/v1) that must hold."""
    preferred_during_scheduling_ignored_during_execution: Terms | None = None
    """Weighted preferences (core/v1 PreferredSchedulingTerm)."""


class PodAffinity(ApiModel):
    """Pods that a pod must or would rather be near to, or away from."""

    required_during_scheduling_ignored_during_execution: Terms | None = None
    """Terms that must hold (core/v1 PodAffinityTerm)."""
    preferred_during_scheduling_ignored_during_execution: Terms | None = None
    """Weighted preferences (core/v1 WeightedPodAffinityTerm)."""


class Affinity(ApiModel):
    """A Kubernetes affinity."""

    node_affinity: NodeAffinity | None = None
    """Nodes to run on."""
    pod_affinity: PodAffinity | None = None
    """Pods to be near to."""
    pod_anti_affinity: PodAffinity | None = None
    """Pods to be away from."""


class PodSettings(ApiModel):
    """What a job may choose for one kind of its pods."""

    resources: Resources | None = None
    """Requests and limits; GPUs come from distribution.gpusPerWorker. Absent: the profile's, or what the plan needs."""
    node_selector: Annotated[dict[str, LabelValue], Field(max_length=16)] | None = None
    """Labels that the node must have, besides the profile's. Absent: the profile's alone."""
    tolerations: Annotated[list[Toleration], Field(max_length=16)] | None = None
    """Taints that the pod tolerates, besides the profile's. Absent: the profile's alone."""
    affinity: Affinity | None = None
    """A Kubernetes affinity (core/v1). Absent: none."""
    priority_class_name: Name | None = None
    """A priority class that the administrator allows. Absent: the cluster's default."""

    rules: ClassVar[tuple[Rule, ...]] = (_short_keys("nodeSelector", "node_selector"),)


class Pods(ApiModel):
    """Settings by kind of pod."""

    worker: PodSettings = PodSettings()
    """The Ray workers, which train."""
    head: PodSettings = PodSettings()
    """The Ray head, which drives the run."""
    prepare: PodSettings = PodSettings()
    """The pod that checks the inputs and tokenises, without GPUs."""
    publish: PodSettings = PodSettings()
    """The pod that verifies and publishes the adapter, without GPUs."""


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
    """Secret with the key private.pem, mounted where the adapter is published, and for the check before prepare that it
    loads; never where data is read or the model is trained."""


class Output(ApiModel):
    """What the job leaves."""

    uri: StoreUri
    """The adapter's prefix: s3://bucket/prefix, or file:///path in local runs. current.json in it names the immutable
    folder that was published. No other live job may have the same."""
    if_exists: IfExists = IfExists.FAIL
    """When another run's adapter is there: Fail; Reuse it when it was made from the same inputs and settings, without
    training, else fail; or Replace it as the current one, keeping its folder."""
    merged_model: bool = False
    """Also publish the base model with the adapter merged into it."""
    servable_by: Annotated[list[Server], Field(max_length=4)] | None = None
    """Inference servers that must be able to load the adapter, checked before training. Absent: none is checked."""
    signing: Signing | None = None
    """Sign the published folder. Absent: it is not signed."""
    keep_run: KeepRun = KeepRun.ON_FAILURE
    """OnFailure deletes tokens and checkpoints after publishing; Always keeps them."""


class Storage(ApiModel):
    """Access to the object store."""

    secret_name: Name = "cloister-storage"  # noqa: S105 (the name of a Secret)
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and any of AWS_SESSION_TOKEN, AWS_ENDPOINT_URL_S3,
    AWS_REGION and ca.crt, which go over the administrator's defaults. Local runs take them from the environment."""
    run_uri: StoreUri | None = None
    """Where run folders with tokens, checkpoints, metrics and logs lie. Absent: the administrator's, or output.uri/runs
    in local runs."""


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
    """Who asked for the job. Absent: not stated."""
    ticket: ShortText | None = None
    """Number or address of the request. Absent: not stated."""
    source_revision: ShortText | None = None
    """Revision of the repository that holds the manifest. Absent: not stated."""
    data_classification: ShortText | None = None
    """Classification of the dataset, for example internal. Absent: not stated."""


class Hold(ApiEnum):
    """Where the job stops until it is released."""

    NONE = "None"
    BEFORE_TRAINING = "BeforeTraining"


Seconds = Annotated[int, Field(ge=0, le=315_360_000)]
PositiveSeconds = Annotated[int, Field(ge=1, le=315_360_000)]
