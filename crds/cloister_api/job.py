"""The FineTuneJob: metadata, spec and status in one object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from cloister_api.base import LABEL_PATTERN, ApiModel, Rule
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


_NO_VALIDATION_CEL = (
    "has(self.dataset.validation) && has(self.dataset.validation.fraction) && self.dataset.validation.fraction == 0.0"
)


def _needs_validation(field: str, asked_cel: str, asked: Callable[[FineTuneJobSpec], bool]) -> Rule:
    """`field` measures held-out examples, so it cannot go with dataset.validation.fraction 0."""

    def holds(spec: FineTuneJobSpec) -> bool:
        validation = spec.dataset.validation
        return not asked(spec) or validation is None or validation.fraction != 0

    return Rule(
        f"!({asked_cel}) || !({_NO_VALIDATION_CEL})",
        f"{field} needs validation examples, and dataset.validation.fraction 0 holds out none",
        holds,
    )


class FineTuneJobSpec(ApiModel):
    """What to train, on what, how and where. Absent fields are chosen automatically; status.resolved shows how."""

    model: Model
    """The base model, and its licence."""
    dataset: Dataset
    """The training data."""
    lora: Lora = Lora()
    """The LoRA adapter: rank, targets, quantization of the base."""
    training: Training = Training()
    """Optimisation: epochs, batch size, learning rate, precision."""
    distribution: Distribution = Distribution()
    """Workers, GPUs and how the model is spread over them."""
    pods: Pods = Pods()
    """Resources and placement by kind of pod. Absent: the administrator's."""
    checkpoint: Checkpoint = Checkpoint()
    """How often the run is saved."""
    evaluation: Evaluation = Evaluation()
    """Measuring on the validation examples: when, early stopping, the gate."""
    output: Output
    """Where the adapter is published, and how."""
    storage: Storage = Storage()
    """Credentials for the object store, and where run folders lie."""
    network: Network = Network()
    """What the job's pods may reach."""
    resume_from: ResumeFrom | None = None
    """The run folder of a failed or deleted job to go on from: its tokens and newest checkpoint are used, or it goes
    straight to publishing. Absent: a new run."""
    provenance: Provenance | None = None
    """Who asked for the job and why, as stated by whoever applies it."""
    hold: Hold = Hold.NONE
    """None; or BeforeTraining, which stops after prepare with the plan in status until the field is removed. Can be
    changed at any time."""
    suspend: bool = False
    """Stop the run, keeping its newest checkpoint, until set back to false. Without effect while publishing. Can be
    changed at any time."""
    backoff_limit: Annotated[int, Field(ge=0, le=100)] = 3
    """Consecutive attempts without a newer checkpoint before the job fails."""
    progress_deadline_seconds: PositiveSeconds = 1800
    """Without a step for so long the stacks of all ranks are stored, the attempt ends with reason NoProgress, and the
    next one starts. The plan raises it where steps are slow."""
    active_deadline_seconds: PositiveSeconds | None = None
    """Preparing and training may take so long in all, queueing not counted. Absent: no limit. Can be changed at any
    time."""
    ttl_seconds_after_finished: Seconds | None = None
    """The job is deleted so long after it ended; stored files stay. Absent: it is not deleted. Can be changed at any
    time."""

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
        _needs_validation(
            "evaluation.gate", "has(self.evaluation.gate)", lambda spec: spec.evaluation.gate is not None
        ),
        _needs_validation(
            "evaluation.earlyStopping",
            "has(self.evaluation.earlyStopping)",
            lambda spec: spec.evaluation.early_stopping is not None,
        ),
        _needs_validation(
            "evaluation.samples", "self.evaluation.samples > 0", lambda spec: spec.evaluation.samples > 0
        ),
    )


class Metadata(ApiModel):
    """The part of Kubernetes' ObjectMeta that Cloister reads; other keys are kept out of the model."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Field(min_length=1, max_length=NAME_MAX_LENGTH, pattern=LABEL_PATTERN)]
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
