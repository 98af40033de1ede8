"""Pod status as a kubelet writes it, from what happens in the pod; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Pod = dict[str, Any]
MESSAGE_BYTES = 4096
"""A kubelet keeps the last bytes of a longer termination message."""
SIGTERM_EXIT = 143


@dataclass(frozen=True)
class Running:
    """All containers run and are ready; init containers are done."""


@dataclass(frozen=True)
class Waiting:
    """No container has started: ContainerCreating, ImagePullBackOff, CreateContainerConfigError, ..."""

    reason: str
    message: str = ""


@dataclass(frozen=True)
class Ended:
    """All containers ended. Where the pod's restartPolicy starts them again, they wait in CrashLoopBackOff."""

    exit_code: int = 0
    message: str = ""
    """What the container left in its termination log."""
    reason: str | None = None
    """Absent: Completed or Error, by the exit code. OOMKilled is the kubelet's word."""


@dataclass(frozen=True)
class Gone:
    """The pod failed as a whole, whatever its restartPolicy: Evicted, NodeLost, Preempted, ..."""

    reason: str
    message: str = ""


State = Running | Waiting | Ended | Gone


def role_of(pod: Pod) -> str:
    """What the pod is for: prepare, head, worker, submitter or publish; KubeRay's own word without our label."""
    labels = pod["metadata"].get("labels", {})
    return str(labels.get("cloister.dev/role") or labels.get("ray.io/node-type") or "")


def is_final(pod: Pod) -> bool:
    """Whether the pod's phase can never change again."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def status_of(pod: Pod, state: State, now: str, address: str) -> dict[str, Any]:
    """The status that a kubelet writes when the pod comes into `state` at `now` (RFC 3339)."""
    if isinstance(state, Waiting):
        return _status(
            pod, now, address, "Pending", {"waiting": _described(state.reason, state.message)}, started=False
        )
    if isinstance(state, Running):
        return _status(pod, now, address, "Running", {"running": {"startedAt": now}})
    if isinstance(state, Gone):
        ended = terminated(Ended(SIGTERM_EXIT), now)
        return _status(pod, now, address, "Failed", ended) | _described(state.reason, state.message)
    if restarts(pod, state):
        waiting = _described("CrashLoopBackOff", "back-off 10s restarting failed container")
        return _status(pod, now, address, "Running", {"waiting": waiting}, last=terminated(state, now))
    return _status(pod, now, address, "Failed" if state.exit_code else "Succeeded", terminated(state, now))


def stopped_status(pod: Pod, now: str, address: str) -> dict[str, Any]:
    """The status of a pod that is being deleted and whose containers obeyed SIGTERM."""
    return _status(pod, now, address, "Failed", terminated(Ended(SIGTERM_EXIT), now))


def restarts(pod: Pod, state: Ended) -> bool:
    """Whether the kubelet starts the containers again."""
    policy = pod["spec"].get("restartPolicy", "Always")
    return policy == "Always" or (policy == "OnFailure" and state.exit_code != 0)


def terminated(state: Ended, now: str) -> dict[str, Any]:
    """A container's state after its end."""
    reason = state.reason or ("Error" if state.exit_code else "Completed")
    kept = state.message.encode()[-MESSAGE_BYTES:].decode(errors="ignore")
    times = {"startedAt": now, "finishedAt": now}
    return {"terminated": {"exitCode": state.exit_code, **_described(reason, kept), **times}}


def _status(
    pod: Pod,
    now: str,
    address: str,
    phase: str,
    state: dict[str, Any],
    *,
    started: bool = True,
    last: dict[str, Any] | None = None,
) -> dict[str, Any]:
    ready = "running" in state
    done = {"Initialized": started, "PodReadyToStartContainers": phase in ("Pending", "Running")}
    conditions = done | {"Ready": ready, "ContainersReady": ready, "PodScheduled": True}
    others = [each for each in pod.get("status", {}).get("conditions", []) if each["type"] not in conditions]
    own = [{"type": name, "status": str(value), "lastTransitionTime": now} for name, value in conditions.items()]
    init = terminated(Ended(), now) if started else {"waiting": _described("PodInitializing", "")}
    return {
        "phase": phase,
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": pod.get("status", {}).get("startTime", now),
        "conditions": [*others, *own],
        "containerStatuses": [
            _container(pod, spec, state, ready=ready, last=last) for spec in pod["spec"]["containers"]
        ],
        "initContainerStatuses": [
            _container(pod, spec, init, ready=started) for spec in pod["spec"].get("initContainers", [])
        ],
    }


def _container(
    pod: Pod, spec: dict[str, Any], state: dict[str, Any], *, ready: bool, last: dict[str, Any] | None = None
) -> dict[str, Any]:
    before = _container_before(pod, spec["name"])
    return {
        "name": spec["name"],
        "image": spec["image"],
        "imageID": "",
        "ready": ready,
        "started": ready,
        "restartCount": before.get("restartCount", 0) + (1 if last else 0),
        "state": state,
        "lastState": last or before.get("lastState", {}),
    }


def _container_before(pod: Pod, name: str) -> dict[str, Any]:
    statuses = pod.get("status", {}).get("containerStatuses", [])
    return next((each for each in statuses if each["name"] == name), {})


def _described(reason: str, message: str) -> dict[str, str]:
    return {"reason": reason, "message": message} if message else {"reason": reason}
