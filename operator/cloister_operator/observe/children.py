"""A job's Jobs and RayJobs as facts, with what belongs to them by their controllers' UIDs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cloister_operator.names import ATTEMPT_LABEL, Role, Step, attempt_of
from cloister_operator.observe import reading
from cloister_operator.observe.facts import Notice, Pod, RayRun, StepJob
from cloister_operator.observe.logs import summarise_log
from cloister_operator.observe.pods import notices, pod_facts, workload_facts
from cloister_operator.observe.reading import Object, controlled_by, moment, quoted, text

REPLICA_FAILURE = "ReplicaFailure"
MANAGED_HERE = frozenset({"", "ray.io/kuberay-operator", "kubernetes.io/job-controller"})
_RAY_ROLES = {"head": Role.HEAD, "worker": Role.WORKER}


@dataclass(frozen=True)
class Objects:
    """Kubernetes' objects as the API gives them, of one namespace; whose they are is decided here."""

    job: Object
    jobs: Sequence[Object] = ()
    pods: Sequence[Object] = ()
    ray_jobs: Sequence[Object] = ()
    ray_clusters: Sequence[Object] = ()
    workloads: Sequence[Object] = ()
    config_maps: Sequence[Object] = ()
    network_policies: Sequence[Object] = ()
    events: Sequence[Object] = ()
    logs: Mapping[str, str] = field(default_factory=dict)
    """The end of the submitters' logs, by the pod's UID."""
    other_jobs: Sequence[Object] = ()
    """FineTuneJobs of all namespaces that may publish to the same place."""
    ray_installed: bool = True
    refused: Mapping[str, str] = field(default_factory=dict)
    """What the API server last said against a child, by the child's name."""


def step_job(objects: Objects, job: Object, step: Step) -> StepJob:
    """The Job of a step."""
    uid = reading.uid(job)
    ended = reading.condition(job, "Complete") or reading.condition(job, "Failed")
    pods = [pod_facts(pod, Role(step), objects.events) for pod in controlled_by(objects.pods, uid)]
    ordinal = reading.labels(job).get(ATTEMPT_LABEL, "")
    return StepJob(
        uid=uid,
        name=reading.name(job),
        created=reading.created(job),
        deleting=reading.deleting(job),
        ordinal=int(ordinal) if ordinal.isascii() and ordinal.isdecimal() and len(ordinal) < 4 else 0,
        suspended=reading.flag(job, "spec", "suspend"),
        managed_elsewhere=_managed_elsewhere(job),
        complete=reading.holds(job, "Complete"),
        failed=text(reading.condition(job, "Failed"), "reason") or "Failed" if reading.holds(job, "Failed") else "",
        ended=moment(ended, "lastTransitionTime"),
        pods=_by_age(pods),
        notices=notices(objects.events, uid),
        workload=workload_facts(objects.workloads, uid),
    )


def ray_run(objects: Objects, ray_job: Object) -> RayRun | None:
    """A RayJob with its cluster; None when its name is not one of an attempt."""
    attempt = attempt_of(reading.name(objects.job), reading.name(ray_job))
    if attempt is None:
        return None
    uid, job_uid = reading.uid(ray_job), reading.uid(objects.job)
    clusters = controlled_by(objects.ray_clusters, uid)
    submitters = controlled_by(objects.jobs, uid)
    pods = _by_age(_ray_pods(objects, clusters) + _submitter_pods(objects, submitters))
    log = "\n".join(objects.logs.get(pod.uid, "") for pod in pods if pod.role is Role.SUBMITTER)
    owners = [uid, *map(reading.uid, clusters), *map(reading.uid, submitters)]
    return RayRun(
        uid=uid,
        name=reading.name(ray_job),
        attempt=attempt,
        cluster_uid=reading.uid(max(clusters, key=reading.created)) if clusters else "",
        created=reading.created(ray_job),
        deleting=reading.deleting(ray_job),
        suspended=reading.flag(ray_job, "spec", "suspend"),
        managed_elsewhere=_managed_elsewhere(ray_job),
        job_status=text(ray_job, "status", "jobStatus"),
        deployment=text(ray_job, "status", "jobDeploymentStatus"),
        reason=text(ray_job, "status", "reason"),
        message=quoted(ray_job, "status", "message"),
        failure=summarise_log(text(ray_job, "status", "message"), job_uid, attempt).failure,
        ended=moment(ray_job, "status", "endTime"),
        head_ready=max(
            (
                moment(reading.condition(found, "HeadPodReady"), "lastTransitionTime") or reading.EPOCH
                for found in clusters
                if reading.holds(found, "HeadPodReady")
            ),
            default=None,
        ),
        pods=pods,
        notices=(
            *(notice for owner in owners for notice in notices(objects.events, owner)),
            *(refused for cluster in clusters if (refused := _replica_failure(cluster))),
        ),
        workload=workload_facts(objects.workloads, uid),
        log=summarise_log(log, job_uid, attempt),
    )


def _managed_elsewhere(found: Object) -> str:
    """Who else than the cluster's own controllers runs a Job or RayJob: MultiKueue, in another cluster."""
    return "" if text(found, "spec", "managedBy") in MANAGED_HERE else quoted(found, "spec", "managedBy")


def _replica_failure(cluster: Object) -> Notice | None:
    """KubeRay's condition that a pod cannot be made, while it holds."""
    if not reading.holds(cluster, REPLICA_FAILURE):
        return None
    found = reading.condition(cluster, REPLICA_FAILURE)
    since = moment(found, "lastTransitionTime") or reading.created(cluster)
    return Notice(REPLICA_FAILURE, quoted(found, "message"), since, since)


def _ray_pods(objects: Objects, clusters: Sequence[Object]) -> list[Pod]:
    owned = [pod for cluster in clusters for pod in controlled_by(objects.pods, reading.uid(cluster))]
    roles = [(pod, _RAY_ROLES.get(reading.labels(pod).get("ray.io/node-type", ""))) for pod in owned]
    return [pod_facts(pod, role, objects.events) for pod, role in roles if role is not None]


def _submitter_pods(objects: Objects, submitters: Sequence[Object]) -> list[Pod]:
    owned = [pod for job in submitters for pod in controlled_by(objects.pods, reading.uid(job))]
    return [pod_facts(pod, Role.SUBMITTER, objects.events) for pod in owned]


def _by_age(pods: Sequence[Pod]) -> tuple[Pod, ...]:
    return tuple(sorted(pods, key=lambda pod: (pod.created, pod.name)))
