"""What may happen to a job: each play leads a world to where its evidence lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cloister_api.events import FailureSeen
from cloister_api.reasons import FailureReason
from cloister_operator.names import Step
from support.operator_values import PREPARED
from support.operator_world import World

TAINTED = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
OOM = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}


def preparing(world: World) -> dict[str, Any]:
    world.settle()
    return world.step_job(Step.PREPARE)


def waiting(reason: str, message: str = "no such thing") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def crashing(reason: str, exit_code: int) -> list[dict[str, Any]]:
    """A container that the kubelet starts for the third time."""
    ended = {"terminated": {"reason": reason, "exitCode": exit_code}}
    return [{"name": "ray-worker", "ready": False, "state": {"running": {}}, "lastState": ended, "restartCount": 2}]


def crashing_worker(reason: str, exit_code: int, *, head: str = "Running") -> Callable[[World], Any]:
    """Beside a head that is ready, or has no place yet."""

    def play(world: World) -> None:
        world.prepared()
        cluster = world.cluster()
        ready = [{"type": "Ready", "status": "True" if head == "Running" else "False"}]
        world.pod(cluster, "head", phase=head, conditions=ready)
        world.pod(cluster, "worker", phase="Running", containerStatuses=crashing(reason, exit_code))
        world.ray("", "Initializing")
        world.settle()
        world.pass_time(minutes=1)
        world.settle()

    return play


def stuck(minutes: int, role: str = "prepare", **pod: Any) -> Callable[[World], Any]:
    """A pod of prepare, or of the Ray cluster, that does not start for so long."""

    def play(world: World) -> None:
        if role == "prepare":
            world.pod(preparing(world), role, phase="Pending", **pod)
        else:
            world.prepared()
            world.pod(world.cluster(), role, phase="Pending", **pod)
            world.ray("", "Initializing")
        world.settle()
        world.pass_time(minutes=minutes)
        world.settle()

    return play


def unschedulable(message: str) -> list[dict[str, Any]]:
    return [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]


def out_of_memory(world: World) -> None:
    """The Job makes the next pod after a pause."""
    world.pod(preparing(world), "prepare", phase="Failed", container="prepare", state=OOM)


def said(step: Step, reason: str) -> Callable[[World], Any]:
    def play(world: World) -> None:
        preparing(world)
        if step is Step.PUBLISH:
            world.succeed(Step.PREPARE, PREPARED)
            world.settle()
            world.ray("SUCCEEDED")
            world.settle()
        world.refuse(step, reason, exit_code=10 if FailureReason(reason).facts.refusal else 11)

    return play


def driver_said(reason: str) -> Callable[[World], Any]:
    def play(world: World) -> None:
        world.prepared()
        world.running()
        line = world.line(FailureSeen(reason=FailureReason(reason), message="It is so.", step=7, node="node-7"))
        message = f"Job entrypoint command failed with exit code 12, last available logs:\nsome line\n{line}\n"
        world.ray("FAILED", "Failed", reason="AppFailed", message=message)

    return play


def forbidden(minutes: int) -> Callable[[World], Any]:
    def play(world: World) -> None:
        world.warn(preparing(world), "FailedCreate", 'pods "x" is forbidden: exceeded quota: small')
        world.settle()
        world.pass_time(minutes=minutes)

    return play


def workers_forbidden(minutes: int) -> Callable[[World], Any]:
    """KubeRay could make the head, and not the workers."""

    def play(world: World) -> None:
        world.prepared()
        world.pod(world.cluster(), "head")
        since = world.now.strftime("%Y-%m-%dT%H:%M:%SZ")
        failure = {"type": "ReplicaFailure", "status": "True", "lastTransitionTime": since, "message": "exceeded quota"}
        world.cluster()["status"]["conditions"].append(failure)
        world.ray("", "Initializing")
        world.settle()
        world.pass_time(minutes=minutes)

    return play


def refused_by_admission(world: World) -> None:
    world.refused["contracts-prepare"] = "admission webhook denied the request: no Jobs on Sundays"


def deny_profile(world: World) -> None:
    world.job["spec"]["distribution"] = {"profile": "other"}


def somebody_elses(world: World) -> None:
    world.add("Job", "contracts-prepare")


def no_ray(world: World) -> None:
    world.ray_installed = False
    world.prepared()


def too_long(world: World) -> None:
    world.change("activeDeadlineSeconds", 60)
    world.pod(preparing(world), "prepare")
    world.settle()
    world.pass_time(seconds=61)


def store_silent(hours: int) -> Callable[[World], Any]:
    def play(world: World) -> None:
        preparing(world)
        for _ in range(hours * 8 or 1):
            world.refuse(Step.PREPARE, "StorageUnavailable", exit_code=12)
            world.step()
            if hours:
                world.pass_time(minutes=10)
                world.settle()

    return play


def killed_worker(state: dict[str, Any], **pod: Any) -> Callable[[World], Any]:
    """KubeRay deletes a failed pod within a second; the attempt fails a little later without a word."""

    def play(world: World) -> None:
        world.prepared()
        world.running()
        world.settle()
        gone = world.pod(world.cluster(), "worker", phase="Failed", state=state, node="node-7", **pod)
        world.settle()
        del world.objects["Pod", gone["metadata"]["name"]]
        world.settle()
        world.ray("FAILED", "Failed", reason="AppFailed", message="Job entrypoint command failed with exit code 1")

    return play


def queued(world: World) -> dict[str, Any]:
    world.job["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "research"}
    world.prepared()
    world.ray_job["spec"]["suspend"] = True
    world.ray("", "Suspended")
    condition = {"type": "QuotaReserved", "status": "False", "message": "couldn't assign flavors to pod set workers"}
    return world.add("Workload", "w", world.ray_job, status={"conditions": [condition]})


def evicted(world: World) -> None:
    world.prepared()
    world.running()
    world.settle()
    world.ray_job["spec"]["suspend"] = True
    world.ray("", "Suspended")


def cpu_quota(world: World) -> None:
    preparing(world)["spec"]["suspend"] = True


def backing_off(world: World) -> None:
    killed_worker({"terminated": {"exitCode": 137, "reason": "OOMKilled"}})(world)


def suspended(world: World) -> None:
    world.change("suspend", True)


def held(world: World) -> None:
    world.change("hold", "BeforeTraining")
    world.prepared()


def changed_hands(world: World) -> None:
    world.prepared()
    world.ray_job["spec"]["managedBy"] = "kueue.x-k8s.io/multikueue"


def no_word_of_ray(world: World) -> None:
    world.prepared()
    world.cluster()
    world.ray("", "Running")
    world.settle()
    world.pass_time(minutes=10)


def earlier_job(world: World) -> None:
    world.add("Job", "contracts-prepare", {**world.job, "metadata": {"name": "contracts", "uid": "earlier"}})
