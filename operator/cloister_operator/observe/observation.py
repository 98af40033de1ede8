"""One look at a job and everything that is its own."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cloister_api.job import API_VERSION, KIND
from cloister_api.loading import check_job
from cloister_api.problems import checked
from cloister_api.status import FineTuneJobStatus
from cloister_api.text import printable
from cloister_operator.names import (
    DENY_POLICY,
    DENY_SPEC,
    MANAGED_BY_LABEL,
    MANAGER,
    Step,
    attempt_of,
    run_file_name,
    step_name,
)
from cloister_operator.observe import reading
from cloister_operator.observe.children import Objects, ray_run, step_job
from cloister_operator.observe.facts import Job, Observation, Rival, Stranger
from cloister_operator.observe.reading import Object, part, text
from cloister_operator.settings import Settings

MAX_PROBLEMS = 10
MAX_PROBLEM_CHARACTERS = 300


class UnreadableStatusError(Exception):
    """A status that the operator did not write. Without it nothing is known of what was done before."""


def observe(objects: Objects, settings: Settings, now: datetime) -> Observation:
    """Everything that a decision about `objects.job` reads.

    What counts as the job's own is what its UID controls, directly or through a RayJob, RayCluster or Job that it
    controls: labels are anybody's to write. Raises UnreadableStatusError.
    """
    job, uid, name = objects.job, reading.uid(objects.job), reading.name(objects.job)
    steps = {
        step: step_job(objects, found, step)
        for step in Step
        for found in reading.controlled_by(objects.jobs, uid)
        if reading.name(found) == step_name(name, step)
    }
    runs = [run for found in reading.controlled_by(objects.ray_jobs, uid) if (run := ray_run(objects, found))]
    status = status_of(job)
    own_policies = [found for found in objects.network_policies if is_own(found, uid)]
    return Observation(
        now=now,
        settings=settings,
        job=job_of(job),
        status=status,
        steps=steps,
        runs=tuple(sorted(runs, key=lambda run: run.attempt)),
        lingering=_lingering(objects, status),
        strangers=_strangers(objects),
        rivals=_rivals(objects),
        run_file=any(reading.name(found) == run_file_name(name) for found in _own(objects.config_maps, uid)),
        policies={reading.name(found): part(found, "spec") for found in own_policies},
        ray_installed=objects.ray_installed,
        refused={child: reading.quoted({"words": words}, "words") for child, words in objects.refused.items()},
    )


def _own(objects: Sequence[Object], uid: str) -> list[Object]:
    return reading.controlled_by(objects, uid)


def job_of(job: Object) -> Job:
    """The FineTuneJob itself."""
    found = check_job(job)
    problems = found if isinstance(found, list) else []
    return Job(
        namespace=text(job, "metadata", "namespace"),
        name=reading.name(job),
        uid=reading.uid(job),
        generation=reading.number(job, "metadata", "generation") or 0,
        created=reading.created(job),
        spec=None if isinstance(found, list) else found.spec,
        problems=tuple(printable(str(problem))[:MAX_PROBLEM_CHARACTERS] for problem in problems[:MAX_PROBLEMS]),
        deleting=reading.deleting(job),
        labels=reading.labels(job),
        annotations=reading.labels(job, "annotations"),
    )


def status_of(job: Object) -> FineTuneJobStatus:
    """What the operator wrote before. Raises UnreadableStatusError."""
    found = checked(FineTuneJobStatus, dict(part(job, "status")))
    if isinstance(found, list):
        raise UnreadableStatusError(f"status.{found[0]}")
    return found


def is_own(policy: Object, uid: str) -> bool:
    """Whether the job with this UID made it. The policy that denies is every job's own, and good whoever keeps it."""
    if reading.name(policy) == DENY_POLICY:
        ours = reading.labels(policy).get(MANAGED_BY_LABEL) == MANAGER or part(policy, "spec") == DENY_SPEC
        return ours and not reading.deleting(policy)
    return text(reading.controller(policy), "uid") == uid


def _lingering(objects: Objects, status: FineTuneJobStatus) -> tuple[str, ...]:
    """Pods of attempts whose RayJobs may be gone already."""
    clusters = {attempt.cluster_uid for attempt in status.attempts or [] if attempt.cluster_uid}
    pods = [pod for pod in objects.pods if text(reading.controller(pod), "uid") in clusters]
    return tuple(sorted(reading.name(pod) for pod in pods if not reading.has_ended(pod)))


def _strangers(objects: Objects) -> tuple[Stranger, ...]:
    """Objects with the names of children that are not the job's own."""
    job, name = objects.job, reading.name(objects.job)
    steps = {step_name(name, step) for step in Step}
    named: list[tuple[str, Object]] = [
        *(("Job", found) for found in objects.jobs if reading.name(found) in steps),
        *(("RayJob", found) for found in objects.ray_jobs if attempt_of(name, reading.name(found))),
        *(("ConfigMap", found) for found in objects.config_maps if reading.name(found) == run_file_name(name)),
        *(("NetworkPolicy", found) for found in objects.network_policies if reading.name(found) == name),
    ]
    strangers = [
        Stranger(kind, reading.name(found), passing=reading.deleting(found) or _of_an_earlier_job(found, name))
        for kind, found in named
        if text(reading.controller(found), "uid") != reading.uid(job)
    ]
    denies = [found for found in objects.network_policies if reading.name(found) == DENY_POLICY]
    strangers += [
        Stranger("NetworkPolicy", DENY_POLICY, passing=reading.deleting(found))
        for found in denies
        if not is_own(found, reading.uid(job))
    ]
    return tuple(strangers)


def _of_an_earlier_job(value: Object, name: str) -> bool:
    """Whether a job of the same name, made and deleted before, controls the object: it is about to be collected."""
    owner = reading.controller(value)
    return (text(owner, "kind"), text(owner, "apiVersion"), text(owner, "name")) == (KIND, API_VERSION, name)


def _rivals(objects: Objects) -> tuple[Rival, ...]:
    """Live jobs of any namespace that publish to the same place. One of the same name is gone, if not yet forgotten."""
    own, named = reading.output(objects.job), _place(objects.job)
    return tuple(
        Rival(
            namespace=text(other, "metadata", "namespace"),
            name=reading.name(other),
            first=_order(other) < _order(objects.job),
            accepted=bool(text(other, "status", "startTime")),
        )
        for other in objects.other_jobs
        if reading.uid(other) != reading.uid(objects.job)
        and own
        and reading.output(other) == own
        and _place(other) != named
        and not reading.deleting(other)
        and text(other, "status", "phase") not in ("Complete", "Failed")
    )


def _place(job: Object) -> tuple[str, str]:
    return text(job, "metadata", "namespace"), reading.name(job)


def _order(job: Object) -> tuple[str, str, str]:
    """Accepted jobs first, then by age."""
    accepted = text(job, "status", "startTime") or "9999"
    return accepted, text(job, "metadata", "creationTimestamp"), reading.uid(job)
