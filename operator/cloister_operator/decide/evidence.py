"""From what pods, Events and KubeRay show to a reason of the enum."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cloister_api.exit_codes import ExitCode, exit_code_for
from cloister_api.reasons import ConditionReason, FailureReason
from cloister_api.termination import Outcome
from cloister_operator.names import Role
from cloister_operator.observe.facts import Container, Notice, Pod, RayRun, StepJob

IMAGE_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
)
BROKEN_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
CRASHES = 2
"""So many starts of a container that is never ready are no accident."""
REPLICA_FAILURE = "ReplicaFailure"
REFUSED_PODS = frozenset({"FailedCreate", "FailedToCreateHeadPod", "FailedToCreateWorkerPod"})
LOST_NODE_REASONS = frozenset({"NodeLost", "NodeShutdown", "Terminated", "NodeAffinity"})
FALSE_FAILURE_REASON = "JobDeploymentStatusTransitionGracePeriodExceeded"
JOB_NOT_FOUND = "Ray job not found in RayCluster"
UNFINISHED = frozenset({"", "PENDING", "RUNNING"})
"""What KubeRay last heard of a Ray job that it has not seen end."""
_SECRET = re.compile(r"secret \"?([a-z0-9.-]+)\"? not found|in Secret ([a-z0-9.-]+)/([a-z0-9.-]+)", re.IGNORECASE)
_CLAIM = re.compile(r"persistentvolumeclaim \"?([a-z0-9.-]+)\"? not found", re.IGNORECASE)
_DISK = re.compile(r"ephemeral|disk|inodes", re.IGNORECASE)


@dataclass(frozen=True)
class Failure:
    """Why a step or an attempt ended."""

    reason: FailureReason
    message: str
    step: int | None = None
    node: str | None = None
    counted: bool = True
    """Whether it uses up a retry."""
    result: dict[str, Any] | None = None


@dataclass(frozen=True)
class Obstacle:
    """Why pods do not run yet. A FailureReason is waited for as long as the administrator says, others without end."""

    reason: FailureReason | ConditionReason
    message: str


def retryable(reason: FailureReason, *, data_was_read: bool) -> bool:
    """Whether trying again can help."""
    return exit_code_for(reason, data_was_read=data_was_read) is ExitCode.RETRYABLE


def pod_failure(pods: Sequence[Pod]) -> Failure | None:
    """What the newest pod that ended badly shows."""
    for pod in reversed(pods):
        if found := next(_endings(pod), None):
            return found
    return None


def _endings(pod: Pod) -> Iterator[Failure]:
    at = f"pod {pod.name} on node {pod.node}" if pod.node else f"pod {pod.name}"
    node = pod.node or None
    for container in pod.containers:
        if container.ended == "OOMKilled":
            message = f"Container {container.name} of {at} ran out of memory and was killed."
            yield Failure(FailureReason.OUT_OF_MEMORY, message, node=node)
    if pod.reason == "Evicted":
        reason = FailureReason.LOCAL_DISK_FULL if _DISK.search(pod.message) else FailureReason.OUT_OF_MEMORY
        yield Failure(reason, f"The kubelet evicted {at}: {pod.message}", node=node)
    if pod.reason in LOST_NODE_REASONS or pod.disruption == "DeletionByTaintManager":
        yield Failure(FailureReason.NODE_LOST, f"The node of {at} went away.", node=node)
    if pod.disruption:
        yield Failure(FailureReason.WORKERS_LOST, f"The cluster ended {at}: {pod.disruption}.", node=node)
    for container in pod.containers:
        if container.exit_code not in (None, 0) and pod.phase == "Failed":
            message = f"Container {container.name} of {at} ended with exit code {container.exit_code}."
            yield Failure(_by_exit_code(container), message, node=node)


def _by_exit_code(container: Container) -> FailureReason:
    """137 without OOMKilled, and 143, are a kill from outside; everything else is an error that left no message."""
    return FailureReason.WORKERS_LOST if container.exit_code in (137, 143) else FailureReason.INTERNAL


def obstacle(pods: Sequence[Pod], notices: Sequence[Notice]) -> Obstacle | None:
    """Why not all of these pods run, the gravest first. Workers end again and again until they have a head."""
    live = [pod for pod in pods if not pod.deleting and pod.phase not in ("Succeeded", "Failed")]
    found = [found for pod in live for found in _pod_obstacles(pod)]
    has_head = any(pod.role is Role.HEAD and pod.ready for pod in live)
    judged = [pod for pod in live if has_head or pod.role is not Role.WORKER]
    found += [_crashing(pod, each) for pod in judged for each in pod.containers if _crashes(each)]
    for kind in (FailureReason, ConditionReason):
        if graver := next((one for one in found if isinstance(one.reason, kind)), None):
            return graver
    newest = max((pod.created for pod in pods), default=None)
    refused = [
        notice
        for notice in notices
        if notice.reason == REPLICA_FAILURE
        or (notice.reason in REFUSED_PODS and not live and (newest is None or notice.last >= newest))
    ]
    if not refused:
        return None
    message = f"The cluster refuses the pods: {refused[-1].message}"
    return Obstacle(FailureReason.PODS_FORBIDDEN, message)


def _pod_obstacles(pod: Pod) -> Iterable[Obstacle]:
    if pod.unschedulable:
        if claim := _CLAIM.search(pod.unschedulable):
            message = f"The claim {claim[1]} does not exist."
            yield Obstacle(FailureReason.VOLUME_NOT_FOUND, message)
        else:
            yield Obstacle(ConditionReason.UNSCHEDULABLE, f"No node has room for pod {pod.name}: {pod.unschedulable}")
    for container in pod.containers:
        words = f"{container.waiting}: {container.waiting_message}".rstrip(": ")
        if container.waiting in IMAGE_REASONS:
            message = f"The image of pod {pod.name} cannot be pulled: {words}"
            yield Obstacle(FailureReason.IMAGE_PULL_FAILED, message)
        elif container.waiting in BROKEN_REASONS:
            yield _broken(pod, words)
    for notice in pod.notices:
        if notice.reason == "FailedMount" and pod.phase == "Pending" and _SECRET.search(notice.message):
            yield _broken(pod, notice.message)


def _broken(pod: Pod, words: str) -> Obstacle:
    if _SECRET.search(words):
        message = f"Pod {pod.name} waits for a Secret or one of its keys: {words}"
        return Obstacle(FailureReason.SECRET_NOT_FOUND, message)
    return Obstacle(FailureReason.INTERNAL, f"Pod {pod.name} cannot start: {words}")


def _crashes(container: Container) -> bool:
    return container.restarts >= CRASHES and not container.ready and bool(container.exit_code)


def _crashing(pod: Pod, container: Container) -> Obstacle:
    """Why a container that the kubelet starts again and again is never ready."""
    if container.ended == "OOMKilled":
        message = f"Container {container.name} of pod {pod.name} runs out of memory whenever it starts."
        return Obstacle(FailureReason.OUT_OF_MEMORY, message)
    message = (
        f"Container {container.name} of pod {pod.name} ends with exit code {container.exit_code} whenever it starts: "
        f"see `kubectl logs {pod.name} -c {container.name} --previous`. Too little memory is a usual cause."
    )
    return Obstacle(FailureReason.INTERNAL, message)


def step_failure(job: StepJob) -> Failure:
    """Why a step's Job ended without success."""
    if said := said_failure(job):
        return said
    if job.failed == "DeadlineExceeded":
        return Failure(FailureReason.DEADLINE_EXCEEDED, f"Job {job.name} took longer than an hour.")
    if found := pod_failure(job.pods[-1:]):
        return found
    return Failure(
        FailureReason.INTERNAL, f"Job {job.name} ended without a message that can be read, so it runs again."
    )


def said_failure(job: StepJob) -> Failure | None:
    """What the newest pod itself says of its failure."""
    pod = job.pods[-1] if job.pods else None
    for container in pod.containers if pod else ():
        said = container.message
        if container.exit_code and said and said.reason and said.outcome is not Outcome.SUCCEEDED:
            return Failure(said.reason, said.message, node=(pod.node if pod else "") or None, result=said.result)
    return None


def run_failure(run: RayRun, seen: Failure | None) -> Failure:
    """Why a RayJob that ended did not succeed. `seen`: a termination that was noted while it ran."""
    event = run.failure or run.log.failure
    if event is not None:
        return Failure(event.reason, event.message, event.step, event.node)
    if found := pod_failure(run.pods) or seen:
        return found
    stuck = obstacle(run.pods, run.notices)
    if stuck and isinstance(stuck.reason, FailureReason):
        return Failure(stuck.reason, stuck.message)
    words = f": {run.message}" if run.message else ""
    if run.job_status == "STOPPED":
        return Failure(FailureReason.WORKERS_LOST, f"The Ray job of {run.name} was stopped from outside.")
    return Failure(FailureReason.INTERNAL, f"RayJob {run.name} ended with {run.reason or 'no reason'}{words}")


def is_false_failure(run: RayRun, *, began: bool) -> bool:
    """Whether KubeRay lost sight of a run that may have succeeded. `began`: a step was made or it was seen running."""
    if run.failure or run.log.failure:
        return False
    return (
        run.reason == FALSE_FAILURE_REASON
        or (run.reason == "SubmissionFailed" and began)
        or (run.job_status in UNFINISHED and JOB_NOT_FOUND in run.message)
    )
