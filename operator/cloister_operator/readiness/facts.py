"""What was found in the cluster, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field

from cloister_api.base import ApiEnum


class Obstacle(ApiEnum):
    """What keeps a step from being made, from starting or from ending, beside a kubelet's and a scheduler's reasons."""

    STILL_THERE = "StillThere"
    """An object of an earlier test is not gone yet."""
    REFUSED = "Refused"
    """The API server, a quota or an admission policy does not let it be made."""
    NOT_SERVED = "NotServed"
    """The cluster does not know its kind."""
    QUEUED = "Queued"
    """Kueue did not admit it."""
    NO_POD = "NoPod"
    """It was made, and its pod was not."""
    NOT_STARTED = "NotStarted"
    """Its pod did not start in time."""
    NOT_ENDED = "NotEnded"
    """Its container started, and did not end in time."""


@dataclass(frozen=True)
class KubeRayFound:
    """A Deployment of KubeRay's operator."""

    image: str
    chart: str = ""
    """Name and version of the chart that installed it; empty: unknown."""
    available: bool = True
    """A pod of it is Available."""


@dataclass(frozen=True)
class InputsFound:
    """How the step ended that writes the model and the rows with the trainer's image."""

    ended: bool
    """It ran to an end, so its image was pulled and its pod was let in."""
    reason: str = ""
    """A FailureReason, an Obstacle, or why its pod does not start; empty: it succeeded."""
    message: str = ""


@dataclass(frozen=True)
class JobFound:
    """How far the job came."""

    phase: str
    """Empty: it was not made."""
    reason: str = ""
    """Without a phase an Obstacle; empty: its turn did not come."""
    message: str = ""
    egress: str = ""
    """Reason of the condition EgressRestricted; empty: nothing was proven yet."""


@dataclass(frozen=True)
class Facts:
    """Everything that the table is made from."""

    ray_jobs_served: bool
    kuberay: tuple[KubeRayFound, ...]
    """Deployments whose pods are labelled as KubeRay's operator."""
    kueue_served: bool
    kueue_frameworks: frozenset[str] | None
    """Kinds that Kueue queues. None: its configuration was not found."""
    unresolved: tuple[str, ...]
    """Host names that this pod cannot resolve."""
    gpus: dict[str, int] = field(default_factory=dict)
    """How many of each GPU resource the nodes offer."""
    inputs: InputsFound = InputsFound(ended=False)
    job: JobFound = JobFound(phase="")


@dataclass(frozen=True)
class Expectations:
    """What the administrator's values ask for."""

    gpu_resources: tuple[str, ...]
    """Resources of the settings' profiles that stand for a GPU."""
    gpu_optional: bool
    kuberay_labels: dict[str, str]
    """Labels by which the jobs' network policies know the pods of KubeRay's operator."""
    kueue_required: bool
    namespace: str
    """Where the job runs."""
    inputs_name: str
    """Name of the Job that writes the inputs."""
    job_name: str
    """Name of the FineTuneJob."""
