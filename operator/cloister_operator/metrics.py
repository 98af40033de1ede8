"""Prometheus metrics."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Iterable
from datetime import UTC, datetime

from prometheus_client import Counter, Gauge, Histogram

from cloister_operator.observe import reading
from cloister_operator.observe.gpu_time import gpu_seconds
from cloister_operator.store import Object

RECONCILE_SECONDS = Histogram("cloister_reconcile_seconds", "Time of one pass over a job")
RECONCILE_ERRORS = Counter("cloister_reconcile_errors_total", "Passes that did not end", ["reason"])
API_CALLS = Counter("cloister_api_calls_total", "Calls of the Kubernetes API", ["verb", "kind"])
QUEUE_DEPTH = Gauge("cloister_queue_depth", "Jobs that are due to be looked at")
JOBS = Gauge("cloister_jobs", "Jobs by phase", ["namespace", "phase"])
GPU_SECONDS = Gauge("cloister_gpu_seconds", "GPU time of the jobs that are there", ["namespace"])
LAST_PROGRESS = Gauge(
    "cloister_job_last_progress_timestamp_seconds", "When a training job's newest step was seen", ["namespace", "name"]
)
ATTEMPTS = Gauge("cloister_attempts", "Attempts of the jobs that are there", ["namespace"])


def count_call(verb: str, kind: str) -> None:
    """One call of the API."""
    API_CALLS.labels(verb, kind).inc()


def count_jobs(jobs: Iterable[Object]) -> None:
    """What the jobs that are there add up to."""
    now = datetime.now(UTC)
    phases: Counts[tuple[str, str]] = Counts()
    seconds: Counts[str] = Counts()
    attempts: Counts[str] = Counts()
    progress: list[tuple[str, str, datetime]] = []
    for job in jobs:
        namespace = reading.text(job, "metadata", "namespace")
        phases[namespace, reading.text(job, "status", "phase") or "Pending"] += 1
        seconds[namespace] += gpu_seconds(job, now)
        attempts[namespace] += reading.number(job, "status", "attempt") or 0
        moment = reading.moment(job, "status", "progress", "updatedAt")
        if moment is not None and reading.text(job, "status", "phase") == "Training":
            progress.append((namespace, reading.name(job), moment))
    for gauge in (JOBS, GPU_SECONDS, ATTEMPTS, LAST_PROGRESS):
        gauge.clear()
    for namespace, name, moment in progress:
        LAST_PROGRESS.labels(namespace, name).set(moment.timestamp())
    for (namespace, phase), count in phases.items():
        JOBS.labels(namespace, phase).set(count)
    for namespace in seconds:
        GPU_SECONDS.labels(namespace).set(seconds[namespace])
        ATTEMPTS.labels(namespace).set(attempts[namespace])
