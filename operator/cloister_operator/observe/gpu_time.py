"""GPU time of a job until a moment: what status has added up, and what its pods have taken since."""

from __future__ import annotations

from datetime import datetime

from cloister_operator.observe import reading
from cloister_operator.observe.reading import Object


def gpu_seconds(job: Object, now: datetime) -> int:
    """GPU seconds of all attempts, the running one until `now`."""
    counted = reading.number(job, "status", "gpuSeconds") or 0
    since, attempts = reading.moment(job, "status", "activeSince"), reading.parts(job, "status", "attempts")
    if since is None or not attempts or reading.text(attempts[-1], "end"):
        return counted
    return counted + max(0, int((now - since).total_seconds())) * _gpus(job)


def _gpus(job: Object) -> int:
    distribution = reading.part(job, "spec", "distribution")
    workers, gpus = (reading.number(distribution, field) for field in ("workers", "gpusPerWorker"))
    return (1 if workers is None else workers) * (1 if gpus is None else gpus)
