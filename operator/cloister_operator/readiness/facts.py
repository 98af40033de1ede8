"""What was found in the cluster, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class InputsFound:
    """How the step ended that writes the model and the rows with the trainer's image."""

    ended: bool
    """It ran to an end, so its image was pulled and its pod was let in."""
    reason: str = ""
    """A FailureReason, or why its pod does not start; empty: it succeeded."""
    message: str = ""


@dataclass(frozen=True)
class JobFound:
    """How far the job came."""

    phase: str
    """Empty: there was none."""
    reason: str = ""
    message: str = ""
    egress: str = ""
    """Reason of the condition EgressRestricted; empty: nothing was proven yet."""


@dataclass(frozen=True)
class Facts:
    """Everything that the table is made from."""

    ray_jobs_served: bool
    kuberay_images: tuple[str, ...]
    """Images of the Deployments that are labelled as KubeRay's operator."""
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
    kueue_required: bool
    namespace: str
    """Where the job runs."""
    inputs_name: str
    """Name of the Job that writes the inputs."""
    job_name: str
    """Name of the FineTuneJob."""
