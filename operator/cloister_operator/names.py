"""Names and labels of a job's children."""

from __future__ import annotations

import re
from typing import Any

from cloister_api.base import ApiEnum

JOB_LABEL = "cloister.dev/job"
ROLE_LABEL = "cloister.dev/role"
ATTEMPT_LABEL = "cloister.dev/attempt"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGER = "cloister-operator"
DENY_POLICY = "cloister-default-deny"
DENY_SPEC: dict[str, Any] = {
    "podSelector": {"matchExpressions": [{"key": JOB_LABEL, "operator": "Exists"}]},
    "policyTypes": ["Ingress", "Egress"],
}
"""What the policy of that name says: nothing flows to or from a pod of a job, unless another policy allows it."""

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
TOPOLOGY_ANNOTATIONS = tuple(
    f"kueue.x-k8s.io/podset-{kind}-topology" for kind in ("required", "preferred", "unconstrained")
)


class Role(ApiEnum):
    """What a pod does, as its label says it."""

    PREPARE = "prepare"
    HEAD = "head"
    WORKER = "worker"
    SUBMITTER = "submitter"
    PUBLISH = "publish"


class Step(ApiEnum):
    """A step that runs as a plain Job."""

    PREPARE = "prepare"
    PUBLISH = "publish"


def run_file_name(job: str) -> str:
    """The ConfigMap with the run file."""
    return f"{job}-run"


def step_name(job: str, step: Step) -> str:
    """The Job of a step."""
    return f"{job}-{step}"


def ray_job_name(job: str, attempt: int) -> str:
    """The RayJob of an attempt."""
    return f"{job}-{attempt}"


def attempt_of(job: str, ray_job: str) -> int | None:
    """The attempt that a RayJob's name stands for, or None for a name of another kind."""
    found = re.fullmatch(rf"{re.escape(job)}-([1-9][0-9]{{0,5}})", ray_job)
    return int(found[1]) if found else None
