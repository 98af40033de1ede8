"""What all pods have in common: nothing that Pod Security `restricted` forbids, no token, no way to write an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cloister_api.job import FineTuneJobSpec
from cloister_api.spec_cluster import PodSettings, Resources
from cloister_operator.names import Role
from cloister_operator.observe.facts import Job
from cloister_operator.render.metadata import Rendered, pod_labels
from cloister_operator.render.run_file import FOLDER, RUN_FILE
from cloister_operator.render.storage_access import SCRATCH, STORAGE_CA, Mount, credentials
from cloister_operator.settings import Settings

USER = 65532
RUN_PATH = f"{FOLDER}/{RUN_FILE}"
OFFLINE = {
    "HOME": "/tmp",  # noqa: S108 (a volume of the pod's own)
    "TMPDIR": "/tmp",  # noqa: S108
    "CLOISTER_SCRATCH": SCRATCH,
    "CLOISTER_STORAGE_CA": STORAGE_CA,
    "HF_HOME": "/tmp/huggingface",  # noqa: S108
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9",  # that statistics are off is reported, too
    "WANDB_MODE": "disabled",
    "PYTHONUNBUFFERED": "1",
}
"""Environment of every container. Hugging Face offline, telemetry off."""


def step_command(step: str, *flags: str) -> list[str]:
    """The command line of a step. Nothing in it comes from a job."""
    return ["python", "-m", "cloister_trainer", step, "--run", RUN_PATH, *flags]


def environment(spec: FineTuneJobSpec, extra: dict[str, str]) -> list[dict[str, Any]]:
    """Variables of a container that reads stored data."""
    return [*variables({**OFFLINE, **extra}), *credentials(spec)]


def variables(values: dict[str, str]) -> list[dict[str, Any]]:
    """Variables with fixed values."""
    return [{"name": name, "value": value} for name, value in values.items()]


def container(name: str, settings: Settings, env: Sequence[dict[str, Any]], mounts: Sequence[Mount]) -> Rendered:
    """A container of the trainer's image without privileges."""
    return {
        "name": name,
        "image": settings.images.trainer,
        "env": list(env),
        "volumeMounts": [mount for _, mount in mounts],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }


def resources(chosen: PodSettings, default: Resources | None, devices: dict[str, Any] | None = None) -> Rendered:
    """Requests and limits: the job's, else the administrator's, and devices, which are limits alone."""
    found = chosen.resources or default or Resources()
    limits = {**(found.limits or {}), **(devices or {})}
    parts = {"requests": found.requests, "limits": limits}
    return {name: dict(part) for name, part in parts.items() if part}


def pod_template(
    job: Job,
    settings: Settings,
    role: Role,
    chosen: PodSettings,
    pod: Rendered,
    mounts: Sequence[Mount],
    labels: dict[str, str] | None = None,
) -> Rendered:
    """A pod template with `pod` (its containers and what is special) over what all pods have in common."""
    placement = chosen.to_api()
    placement.pop("resources", None)
    volumes = {volume["name"]: volume for volume, _ in mounts}
    spec = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **placement,
        **pod,
        "volumes": list(volumes.values()),
    }
    if settings.images.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.images.pull_secrets]
    return {"metadata": {"labels": pod_labels(job, settings, role, labels)}, "spec": spec}
