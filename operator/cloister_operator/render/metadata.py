"""Names, labels and owners of children."""

from __future__ import annotations

from typing import Any

from cloister_api.job import API_VERSION, KIND
from cloister_operator.names import JOB_LABEL, MANAGED_BY_LABEL, MANAGER, ROLE_LABEL, Role
from cloister_operator.observe.facts import Job
from cloister_operator.settings import Settings

Rendered = dict[str, Any]


def metadata(job: Job, settings: Settings, name: str, labels: dict[str, str] | None = None) -> Rendered:
    """metadata of a child that its job controls."""
    return {
        "name": name,
        "namespace": job.namespace,
        "labels": {**child_labels(job, settings), **(labels or {})},
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": job.name,
                "uid": job.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def child_labels(job: Job, settings: Settings) -> dict[str, str]:
    """Labels of every child; ours go over those that are copied."""
    copied = {key: job.labels[key] for key in settings.labels.propagate if key in job.labels}
    return {
        **copied,
        JOB_LABEL: job.name,
        MANAGED_BY_LABEL: MANAGER,
        "app.kubernetes.io/name": "cloister",
        "app.kubernetes.io/instance": job.name,
    }


def pod_labels(job: Job, settings: Settings, role: Role, extra: dict[str, str] | None = None) -> dict[str, str]:
    """Labels of a pod; ours go over the administrator's, and the administrator's over those that are copied."""
    return {**child_labels(job, settings), **settings.labels.pods, **(extra or {}), **_fixed(job, role)}


def _fixed(job: Job, role: Role) -> dict[str, str]:
    return {JOB_LABEL: job.name, ROLE_LABEL: role.value, "app.kubernetes.io/component": role.value}
