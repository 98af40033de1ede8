"""The RayJob of one attempt: a head without GPUs, one group of equal workers, a submitter (KubeRay 1.6)."""

from __future__ import annotations

from typing import Any

from cloister_api.job import FineTuneJobSpec
from cloister_api.run import ATTEMPT_ENVIRONMENT
from cloister_api.spec_cluster import PodSettings
from cloister_operator.names import (
    ATTEMPT_LABEL,
    PRIORITY_LABEL,
    QUEUE_LABEL,
    TOPOLOGY_ANNOTATIONS,
    Role,
    ray_job_name,
)
from cloister_operator.observe.facts import Job
from cloister_operator.render.metadata import Rendered, metadata
from cloister_operator.render.pod import (
    OFFLINE,
    container,
    environment,
    pod_template,
    resources,
    step_command,
    variables,
)
from cloister_operator.render.storage_access import Mount, cache_mounts, claim_mounts, common_mounts
from cloister_operator.settings import Profile, Settings

RAY_VERSION = "2.60.0"
SUBMITTER_CONTAINER = "ray-job-submitter"
SUBMITTER_RETRIES = 100
"""A head that is lost is replaced, and the submitter starts the run again on the new one."""
CLUSTER_TTL_SECONDS = 60
WORKER_GRACE_SECONDS = 120
HEAD_GRACE_SECONDS = 30
NO_CLOUD = "echo '{}' > $HOME/ray_bootstrap_config.yaml"
"""Where Ray's dashboard finds this file, it does not ask cloud metadata servers whose machine this is; without it, it
does so even with usage statistics off. KubeRay puts the command before `ray start`."""
STOP_WAIT_SECONDS = 90
PRE_STOP = ["python", "-m", "cloister_trainer.pre_stop"]
WORKER_ENVIRONMENT = {
    "RAY_worker_niceness": "0",  # else ranks run at 15, behind Ray's own daemons
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # PRE_STOP has seen to the ranks when `ray start` is told to end
}
CPU_WORKER_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
"""As for local workers: memory that one layer frees is for the next; from the system it comes page by page, zeroed."""


def ray_job(job: Job, spec: FineTuneJobSpec, settings: Settings, attempt: int) -> Rendered:
    """RayJob `<job>-<attempt>`. Raises KeyError when the administrator no longer has the job's profile."""
    profile = settings.profiles[spec.distribution.profile]
    queueing = {key: job.labels[key] for key in (QUEUE_LABEL, PRIORITY_LABEL) if key in job.labels}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata(job, settings, ray_job_name(job.name, attempt), {ATTEMPT_LABEL: str(attempt), **queueing}),
        "spec": {
            "entrypoint": " ".join(step_command("train")),
            "submissionMode": "K8sJobMode",
            "submitterConfig": {"backoffLimit": SUBMITTER_RETRIES},
            "backoffLimit": 0,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": CLUSTER_TTL_SECONDS,
            "submitterPodTemplate": _submitter(job, settings),
            "rayClusterSpec": {
                "rayVersion": RAY_VERSION,
                "authOptions": {"mode": "token"},
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0", "num-gpus": "0"},
                    "template": _head(job, spec, settings, attempt),
                },
                "workerGroupSpecs": [_workers(job, spec, settings, profile, attempt)],
            },
        },
    }


def _submitter(job: Job, settings: Settings) -> Rendered:
    """The pod that hands the run to Ray: no credentials of the store."""
    tmp: list[Mount] = [({"name": "tmp", "emptyDir": {}}, {"name": "tmp", "mountPath": "/tmp"})]  # noqa: S108
    env = variables({key: OFFLINE[key] for key in ("HOME", "TMPDIR", "RAY_USAGE_STATS_ENABLED", "PYTHONUNBUFFERED")})
    submitter = container(SUBMITTER_CONTAINER, settings, env, tmp)
    submitter["resources"] = resources(PodSettings(), settings.resources.submitter)
    pod = {"restartPolicy": "Never", "containers": [submitter]}
    return pod_template(job, settings, Role.SUBMITTER, PodSettings(), pod, tmp)


def _head(job: Job, spec: FineTuneJobSpec, settings: Settings, attempt: int) -> Rendered:
    mounts = [*common_mounts(job, spec), *claim_mounts(spec, all_inputs=False), _shared_memory("1Gi")]
    extra = {ATTEMPT_ENVIRONMENT: str(attempt), "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_SECONDS)}
    head = container("ray-head", settings, environment(spec, extra), mounts)
    head["args"] = [NO_CLOUD]
    head["resources"] = resources(spec.pods.head, settings.resources.head)
    pod = {"terminationGracePeriodSeconds": HEAD_GRACE_SECONDS, "containers": [head]}
    return pod_template(job, settings, Role.HEAD, spec.pods.head, pod, mounts)


def _workers(job: Job, spec: FineTuneJobSpec, settings: Settings, profile: Profile, attempt: int) -> Rendered:
    count, gpus = spec.distribution.workers, spec.distribution.gpus_per_worker
    return {
        "groupName": "workers",
        "replicas": count,
        "minReplicas": count,
        "maxReplicas": count,
        "rayStartParams": {"num-gpus": str(gpus)},
        "template": _worker(job, spec, settings, profile, attempt),
    }


def _worker(job: Job, spec: FineTuneJobSpec, settings: Settings, profile: Profile, attempt: int) -> Rendered:
    gpus = spec.distribution.gpus_per_worker
    mounts = [
        *common_mounts(job, spec),
        *claim_mounts(spec, all_inputs=False),
        *cache_mounts(spec),
        _shared_memory(profile.shared_memory),
    ]
    defaults = WORKER_ENVIRONMENT if gpus else WORKER_ENVIRONMENT | CPU_WORKER_ENVIRONMENT
    env = environment(spec, {**defaults, **profile.env, ATTEMPT_ENVIRONMENT: str(attempt)})
    worker = container("ray-worker", settings, env, mounts)
    devices = {**profile.extra_resources, **({profile.gpu_resource: gpus} if gpus else {})}
    worker["resources"] = resources(spec.pods.worker, profile.resources, devices)
    worker["lifecycle"] = {"preStop": {"exec": {"command": PRE_STOP}}}
    pod: Rendered = {"terminationGracePeriodSeconds": WORKER_GRACE_SECONDS, "containers": [worker]}
    for key, value in (("runtimeClassName", profile.runtime_class_name), ("schedulerName", profile.scheduler_name)):
        if value is not None:
            pod[key] = value
    template = pod_template(job, settings, Role.WORKER, _placed(spec.pods.worker, profile), pod, mounts, profile.labels)
    topology = {key: job.annotations[key] for key in TOPOLOGY_ANNOTATIONS if key in job.annotations}
    if annotations := {**profile.annotations, **topology}:
        template["metadata"]["annotations"] = annotations
    return template


def _placed(chosen: PodSettings, profile: Profile) -> PodSettings:
    """The job's placement inside the profile's: what the profile says cannot be undone."""
    selector = {**(chosen.node_selector or {}), **profile.node_selector}
    tolerations = [*(chosen.tolerations or []), *profile.tolerations]
    return chosen.model_copy(update={"node_selector": selector or None, "tolerations": tolerations or None})


def _shared_memory(size: str) -> Mount:
    volume: dict[str, Any] = {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": size}}
    return volume, {"name": "dshm", "mountPath": "/dev/shm"}  # noqa: S108 (the pod's own)
