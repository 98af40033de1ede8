"""What decisions read: plain values, free of Kubernetes' nesting and of everything that nobody vouches for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cloister_api.events import CheckpointSaved, Done, EvaluationDone, FailureSeen, Progress
from cloister_api.job import FineTuneJobSpec
from cloister_api.status import FineTuneJobStatus
from cloister_api.termination import TerminationMessage
from cloister_operator.names import Role, Step
from cloister_operator.settings import Settings


@dataclass(frozen=True)
class Notice:
    """A Warning Event about one of the job's objects."""

    reason: str
    message: str
    first: datetime
    last: datetime


@dataclass(frozen=True)
class Container:
    """One container of a pod."""

    name: str
    ready: bool = False
    waiting: str = ""
    """Why it does not run yet, as the kubelet names it."""
    waiting_message: str = ""
    exit_code: int | None = None
    """None while it has not ended."""
    ended: str = ""
    """Why it ended: Completed, Error, OOMKilled, ..."""
    message: TerminationMessage | None = None
    """What it left, when that is whole and of the agreed form."""
    ended_at: datetime | None = None
    restarts: int = 0


@dataclass(frozen=True)
class Pod:
    """A pod that belongs to the job by a chain of controllers."""

    uid: str
    name: str
    role: Role
    created: datetime
    phase: str = ""
    reason: str = ""
    message: str = ""
    node: str = ""
    scheduled: datetime | None = None
    unschedulable: str = ""
    """The scheduler's words while it finds no node."""
    disruption: str = ""
    """Why the cluster ends the pod: DeletionByTaintManager, PreemptionByScheduler, ..."""
    ready: bool = False
    deleting: bool = False
    containers: tuple[Container, ...] = ()
    """Init containers first."""
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True)
class Workload:
    """Kueue's view of a Job or RayJob."""

    reserved: bool
    evicted: bool
    message: str
    since: datetime
    """When it began to wait, or was given its quota."""


@dataclass(frozen=True)
class StepJob:
    """The Job of prepare or publish."""

    uid: str
    name: str
    created: datetime
    deleting: bool = False
    ordinal: int = 0
    """How many runs of the step failed before this one."""
    suspended: bool = False
    managed_elsewhere: str = ""
    complete: bool = False
    failed: str = ""
    """Why the Job failed, as the Job controller names it."""
    ended: datetime | None = None
    pods: tuple[Pod, ...] = ()
    """Oldest first."""
    notices: tuple[Notice, ...] = ()
    workload: Workload | None = None


@dataclass(frozen=True)
class LogSummary:
    """The newest event of each kind in the submitter's log, all of this attempt."""

    progress: Progress | None = None
    evaluation: EvaluationDone | None = None
    checkpoint: CheckpointSaved | None = None
    failure: FailureSeen | None = None
    done: Done | None = None
    """Only when it is the last event of the log."""


@dataclass(frozen=True)
class RayRun:
    """A RayJob with its RayCluster and pods."""

    uid: str
    name: str
    attempt: int
    created: datetime
    deleting: bool = False
    cluster_uid: str = ""
    """UID of its newest RayCluster."""
    suspended: bool = False
    managed_elsewhere: str = ""
    job_status: str = ""
    deployment: str = ""
    reason: str = ""
    message: str = ""
    failure: FailureSeen | None = None
    """The failure event among the last lines that status.message quotes."""
    ended: datetime | None = None
    head_ready: datetime | None = None
    pods: tuple[Pod, ...] = ()
    notices: tuple[Notice, ...] = ()
    workload: Workload | None = None
    log: LogSummary = LogSummary()

    def of(self, role: Role) -> tuple[Pod, ...]:
        """Its pods of one role."""
        return tuple(pod for pod in self.pods if pod.role is role)

    @property
    def finished(self) -> bool:
        """KubeRay does nothing more with it but removing the cluster."""
        return self.deployment in ("Complete", "Failed", "ValidationFailed")


@dataclass(frozen=True)
class Stranger:
    """An object with a child's name that this job does not control."""

    kind: str
    name: str
    passing: bool
    """It is being deleted, or belongs to an earlier job of the same name whose children are being collected."""


@dataclass(frozen=True)
class Rival:
    """Another live job with the same output."""

    namespace: str
    name: str
    first: bool
    """It was accepted, or made, before this one."""
    accepted: bool


@dataclass(frozen=True)
class Job:
    """The FineTuneJob itself."""

    namespace: str
    name: str
    uid: str
    generation: int
    created: datetime
    spec: FineTuneJobSpec | None
    """None when the stored object does not parse."""
    problems: tuple[str, ...] = ()
    """Why it does not parse."""
    deleting: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Observation:
    """Everything that a decision reads."""

    now: datetime
    settings: Settings
    job: Job
    status: FineTuneJobStatus
    steps: dict[Step, StepJob] = field(default_factory=dict)
    runs: tuple[RayRun, ...] = ()
    """Newest attempt last."""
    lingering: tuple[str, ...] = ()
    """Names of pods that earlier attempts left and that have not ended."""
    strangers: tuple[Stranger, ...] = ()
    rivals: tuple[Rival, ...] = ()
    run_file: bool = False
    """Whether the ConfigMap with the run file is there."""
    policies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The spec of each of the job's NetworkPolicies, and of the namespace's, by name."""
    ray_installed: bool = True
    refused: Mapping[str, str] = field(default_factory=dict)
    """What the API server last said against a child, by the child's name."""

    def run(self, attempt: int) -> RayRun | None:
        """The RayJob of an attempt."""
        return next((run for run in self.runs if run.attempt == attempt), None)
