"""FineTuneJobs through a cluster's REST paths."""

from __future__ import annotations

from typing import Any

from cloister_api.crd import PLURAL
from cloister_api.job import API_VERSION
from cluster.control_plane.access import Cluster
from support.api_jobs import job_with


def jobs_path(namespace: str, name: str = "") -> str:
    """The path of one FineTuneJob, or of all in the namespace."""
    return f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURAL}/{name}".rstrip("/")


def create_job(cluster: Cluster, namespace: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The smallest job with fields set, made in the namespace; as the server keeps it."""
    created: dict[str, Any] = cluster.api.create(jobs_path(namespace), job_in(namespace, changes or {}))
    return created


def try_job(cluster: Cluster, namespace: str, changes: dict[str, Any]) -> dict[str, Any]:
    """What the server would keep, without keeping it."""
    answered: dict[str, Any] = cluster.api.create(f"{jobs_path(namespace)}?dryRun=All", job_in(namespace, changes))
    return answered


def job_in(namespace: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The smallest job with fields set, for a namespace."""
    return job_with({**changes, "metadata.namespace": namespace})
