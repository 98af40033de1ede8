"""The FineTuneJob: metadata, spec and status in one object."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from cloister_api.base import ApiModel, Rule
from cloister_api.spec_cluster import (
    Distribution,
    Hold,
    Network,
    Output,
    Pods,
    PositiveSeconds,
    Provenance,
    ResumeFrom,
    Seconds,
    Storage,
)
from cloister_api.spec_data import Dataset, Model
from cloister_api.spec_training import Checkpoint, Evaluation, Lora, Quantization, Training
from cloister_api.status import FineTuneJobStatus

GROUP = "cloister.dev"
VERSION = "v1alpha1"
KIND = "FineTuneJob"
API_VERSION = f"{GROUP}/{VERSION}"
NAME_MAX_LENGTH = 40

MUTABLE_FIELDS = frozenset({"suspend", "hold", "ttl_seconds_after_finished", "active_deadline_seconds"})


class FineTuneJobSpec(ApiModel):
    """What to train, on what, how and where. Absent fields are chosen automatically; status.resolved shows how."""

    model: Model
    """The base model."""
    dataset: Dataset
    """The training data."""
    lora: Lora = Lora()
    """The adapter."""
    training: Training = Training()
    """Optimisation."""
    distribution: Distribution = Distribution()
    """Workers and devices."""
    pods: Pods = Pods()
    """Settings by kind of pod."""
    checkpoint: Checkpoint = Checkpoint()
    """How often the run is saved."""
    evaluation: Evaluation = Evaluation()
    """Measuring on the validation examples."""
    output: Output
    """What the job leaves."""
    storage: Storage = Storage()
    """Access to the object store."""
    network: Network = Network()
    """Network access of the job's pods."""
    resume_from: ResumeFrom | None = None
    """An earlier run to go on from: its tokens and newest checkpoint are used."""
    provenance: Provenance | None = None
    """Who asked for the job and why."""
    hold: Hold = Hold.NONE
    """BeforeTraining stops after prepare, with the plan in status, until the field is removed."""
    suspend: bool = False
    """Stop the run, keeping its checkpoint, until set back to false."""
    backoff_limit: Annotated[int, Field(ge=0, le=100)] = 3
    """Consecutive attempts without a newer checkpoint before the job fails."""
    progress_deadline_seconds: PositiveSeconds = 1800
    """Without a step for so long the attempt is ended with reason NoProgress and tried again."""
    active_deadline_seconds: PositiveSeconds | None = None
    """Preparing and training may take so long in all. Absent: no limit."""
    ttl_seconds_after_finished: Seconds | None = None
    """The job is deleted so long after it ended. Absent: it stays."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.lora.quantization == 'None' || !has(self.distribution.zeroStage) || self.distribution.zeroStage <= 2",
            "lora.quantization NF4 needs distribution.zeroStage 2 or lower",
            lambda spec: (
                spec.lora.quantization == Quantization.NONE
                or spec.distribution.zero_stage is None
                or spec.distribution.zero_stage <= 2
            ),
        ),
    )


class Metadata(ApiModel):
    """The part of Kubernetes' ObjectMeta that Cloister reads; other keys are kept out of the model."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Field(min_length=1, max_length=NAME_MAX_LENGTH, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")]
    """The job's name, a DNS-1035 label of at most 40 characters: children add suffixes."""
    namespace: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """The namespace. Absent: the current one, or `local` in local runs."""
    uid: str | None = None
    """Set by the API server."""
    labels: dict[str, str] = {}
    """Labels."""
    annotations: dict[str, str] = {}
    """Annotations."""


class FineTuneJob(ApiModel):
    """A LoRA fine-tuning run as one declarative object."""

    api_version: Literal["cloister.dev/v1alpha1"]
    """cloister.dev/v1alpha1"""
    kind: Literal["FineTuneJob"]
    """FineTuneJob"""
    metadata: Metadata
    """Name and namespace."""
    spec: FineTuneJobSpec
    """What is asked for."""
    status: FineTuneJobStatus | None = None
    """What the operator has seen and done."""
