"""The audit log: one line for what happened to a job, with who asked for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cloister_api.status import FineTuneJobStatus, Phase
from cloister_operator.observe.facts import Job

VERSION = 1


def audit_entries(job: Job, old: FineTuneJobStatus, new: FineTuneJobStatus) -> list[dict[str, Any]]:
    """What an audit says of the step from one status to the next; empty when nothing of note happened.

    `what` is accepted, refused, attempt, completed or failed.
    """
    return [_entry(job, what, new, details) for what, details in _happenings(old, new)]


def deletion_entry(job: Job, status: FineTuneJobStatus, gpu_seconds: int) -> dict[str, Any]:
    """What an audit says of a job that is deleted, perhaps while it trains."""
    return _entry(job, "deleted", status, {"phase": status.phase}) | {"gpuSeconds": gpu_seconds}


def _happenings(old: FineTuneJobStatus, new: FineTuneJobStatus) -> Iterator[tuple[str, dict[str, Any]]]:
    if old.start_time is None and new.start_time is not None:
        yield "accepted", {}
    if new.attempt is not None and new.attempt != old.attempt:
        yield "attempt", {"attempt": new.attempt}
    if new.phase != old.phase and new.phase is Phase.COMPLETE and new.output is not None:
        yield "completed", {"output": new.output.uri, "manifestDigest": new.output.manifest_digest}
    if new.phase != old.phase and new.phase is Phase.FAILED:
        yield ("refused" if new.start_time is None else "failed"), {"reason": new.reason}


def _entry(job: Job, what: str, status: FineTuneJobStatus, details: dict[str, Any]) -> dict[str, Any]:
    provenance = job.spec.provenance.to_api() if job.spec and job.spec.provenance else {}
    fields = {
        "audit": VERSION,
        "what": what,
        "namespace": job.namespace,
        "name": job.name,
        "uid": job.uid,
        **details,
        "provenance": provenance or None,
        "gpuSeconds": status.gpu_seconds or 0,
    }
    return {key: value for key, value in fields.items() if value is not None}
