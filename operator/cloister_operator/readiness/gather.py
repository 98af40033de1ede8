"""From the cluster to facts: look around, then run the two steps, one after the other."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace

from cloister_api.termination import Outcome, parse_termination
from cloister_api.units import parse_quantity
from cloister_api.yaml_tree import UnreadableError, read_documents
from cloister_operator.cluster import Cluster, ClusterError, Object
from cloister_operator.observe import reading
from cloister_operator.readiness.facts import Facts, InputsFound, JobFound, KubeRayFound, Obstacle
from cloister_operator.readiness.plan import Plan

POLL_S = 2.0
KUEUE_CONFIG = "kueue-manager-config"
WAITING_IN_VAIN = frozenset(
    ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError")
)
DONE = ("Complete", "Failed")
QUEUED = (Obstacle.QUEUED, "Kueue did not admit its Job in time")
SCHEDULING_GATED = "SchedulingGated"
"""A pod's scheduling gates are closed: Kueue holds pods so that it queues by themselves."""
GATED = (Obstacle.QUEUED, "Kueue, or what else set the pod's scheduling gates, did not admit its pod in time")

Say = Callable[[str], None]


class NotMadeError(Exception):
    """An object of the test could not be made; says which Obstacle there is, and a sentence."""

    def __init__(self, obstacle: Obstacle, sentence: str) -> None:
        super().__init__(sentence)
        self.obstacle = obstacle


async def gather(cluster: Cluster, plan: Plan, say: Say) -> Facts:
    """Everything that the table asks. The job is tried when its inputs are in the store. Raises ClusterError."""
    seen = await look_around(cluster, plan)
    say("The trainer's image writes a tiny model and rows to the object store.")
    deadline = asyncio.get_running_loop().time() + plan.timeout_s
    inputs = await run_inputs(cluster, plan, deadline)
    tried = inputs.ended and not inputs.reason
    return replace(
        seen, inputs=inputs, job=await run_job(cluster, plan, deadline, say) if tried else JobFound(phase="")
    )


async def look_around(cluster: Cluster, plan: Plan) -> Facts:
    """What is there before anything runs."""
    kueue_served = await _is_served(cluster, "workloads.kueue.x-k8s.io")
    return Facts(
        ray_jobs_served=await _is_served(cluster, "rayjobs.ray.io"),
        kuberay=await _kuberay(cluster, plan.expected.kuberay_labels),
        kueue_served=kueue_served,
        kueue_frameworks=await _kueue_frameworks(cluster, plan.kueue_namespace) if kueue_served else None,
        unresolved=tuple([name for name in plan.host_names if not await _resolves(name)]),
        gpus=await _gpus(cluster, plan.expected.gpu_resources),
    )


async def run_inputs(cluster: Cluster, plan: Plan, deadline: float) -> InputsFound:
    """Run the Job that writes the inputs, until it ended, its pod does not start, or the loop's clock says `deadline`.

    What waits for its queue, without a pod or with one that is gated, needs no patience.
    """
    now = asyncio.get_running_loop().time
    try:
        namespace, name = await _make_anew(cluster, plan.inputs, min(deadline, now() + plan.patience_s))
    except NotMadeError as error:
        return InputsFound(ended=False, reason=error.obstacle, message=str(error))
    patience = now() + plan.patience_s
    while True:
        pods = await cluster.list("Pod", namespace, label_selector=f"job-name={name}")
        pod = pods.items[-1] if pods and pods.items else None
        if pod is not None and (ended := _end(pod)) is not None:
            return ended
        queued = pod is None and reading.part(await cluster.get("Job", namespace, name) or {}, "spec").get("suspend")
        obstacle = QUEUED if queued else _obstacle(pod)
        if obstacle is None or obstacle[0] == Obstacle.QUEUED:
            patience = now() + plan.patience_s
        if now() > min(deadline, patience):
            reason, message = obstacle or _late(pod)
            return InputsFound(ended=False, reason=reason, message=message)
        await asyncio.sleep(POLL_S)


async def run_job(cluster: Cluster, plan: Plan, deadline: float, say: Say) -> JobFound:
    """Apply the FineTuneJob and follow it until the loop's clock says `deadline`.

    It is deleted when it is complete; one that failed stays to be read.
    """
    now = asyncio.get_running_loop().time
    try:
        namespace, name = await _make_anew(cluster, plan.job, min(deadline, now() + plan.patience_s))
    except NotMadeError as error:
        return JobFound(phase="", reason=error.obstacle, message=str(error))
    said, found = "", JobFound(phase="Pending")
    while found.phase not in DONE and now() < deadline:
        job = await cluster.get(plan.job["kind"], namespace, name) or {}
        found = _job_found(job)
        line = f"{found.phase}: {found.message}" if found.message else found.phase
        if line != said:
            say(line)
            said = line
        await asyncio.sleep(POLL_S if found.phase not in DONE else 0)
    if found.phase == "Complete":
        await cluster.delete(plan.job["kind"], namespace, name, job["metadata"]["uid"])
    return found


async def _make_anew(cluster: Cluster, manifest: Object, deadline: float) -> tuple[str, str]:
    """Create the object, after one that an earlier test left is gone. Raises NotMadeError, and ClusterError."""
    kind, namespace, name = manifest["kind"], manifest["metadata"]["namespace"], manifest["metadata"]["name"]
    try:
        while (left := await cluster.get(kind, namespace, name)) is not None:
            await cluster.delete(kind, namespace, name, left["metadata"]["uid"])
            if asyncio.get_running_loop().time() > deadline:
                sentence = f"the {kind} {name} that an earlier test left was deleted, and is still there"
                raise NotMadeError(Obstacle.STILL_THERE, sentence)
            await asyncio.sleep(POLL_S)
        await cluster.create(manifest)
    except ClusterError as error:
        if error.gone:
            raise NotMadeError(Obstacle.NOT_SERVED, f"the API server knows no {kind} in {namespace}") from None
        if error.refused or error.conflict:
            raise NotMadeError(Obstacle.REFUSED, str(error)) from None
        raise
    return namespace, name


def _end(pod: Object) -> InputsFound | None:
    """How the pod ended; None while it has not."""
    for status in reading.parts(pod, "status", "containerStatuses"):
        ended = reading.part(status, "state").get("terminated")
        if ended is None:
            continue
        message = parse_termination(ended.get("message", ""))
        if message is None:
            return InputsFound(
                ended=True, reason="Internal", message=f"{ended.get('reason')}, exit {ended['exitCode']}"
            )
        if message.outcome is Outcome.SUCCEEDED:
            return InputsFound(ended=True)
        return InputsFound(ended=True, reason=str(message.reason), message=message.message)
    if reading.has_ended(pod):
        reason = reading.text(pod, "status", "reason") or Obstacle.NOT_STARTED
        return InputsFound(ended=False, reason=reason, message=reading.quoted(pod, "status", "message"))
    return None


def _late(pod: Object | None) -> tuple[str, str]:
    """Why a pod that nothing keeps from starting is not at its end when the time is up."""
    if any(reading.part(each, "state", "running") for each in reading.parts(pod, "status", "containerStatuses")):
        return Obstacle.NOT_ENDED, "the trainer's image ran, and did not end in time"
    return Obstacle.NOT_STARTED, "its pod did not start in time; a kubelet may still be pulling the image"


def _obstacle(pod: Object | None) -> tuple[str, str] | None:
    """Why the pod does not start; None when it runs or a kubelet is at it."""
    if pod is None:
        return Obstacle.NO_POD, "no pod was made: a quota or an admission policy may refuse it"
    scheduled = reading.condition(pod, "PodScheduled")
    if reading.text(scheduled, "reason") == SCHEDULING_GATED:
        return GATED
    if reading.text(scheduled, "status") == "False":
        return reading.text(scheduled, "reason"), reading.quoted(scheduled, "message")
    for status in reading.parts(pod, "status", "containerStatuses"):
        waiting = reading.part(status, "state", "waiting")
        if (reason := reading.text(waiting, "reason")) in WAITING_IN_VAIN:
            return reason, reading.quoted(waiting, "message")
    return None


def _job_found(job: Object) -> JobFound:
    return JobFound(
        phase=reading.text(job, "status", "phase") or "Pending",
        reason=reading.text(job, "status", "reason"),
        message=reading.text(job, "status", "message"),
        egress=reading.text(reading.condition(job, "EgressRestricted"), "reason"),
    )


async def _is_served(cluster: Cluster, crd: str) -> bool:
    return await cluster.get("CustomResourceDefinition", "", crd) is not None


async def _kuberay(cluster: Cluster, labels: Mapping[str, str]) -> tuple[KubeRayFound, ...]:
    deployments = await cluster.list("Deployment", None)
    return tuple(
        KubeRayFound(
            image=container["image"],
            chart=reading.labels(each).get("helm.sh/chart", ""),
            available=bool(reading.number(each, "status", "availableReplicas")),
        )
        for each in (deployments.items if deployments else ())
        if labels.items() <= reading.labels(each["spec"]["template"]).items()
        for container in each["spec"]["template"]["spec"]["containers"]
    )


async def _kueue_frameworks(cluster: Cluster, namespace: str) -> frozenset[str] | None:
    config = await cluster.get("ConfigMap", namespace, KUEUE_CONFIG)
    for text in reading.part(config, "data").values():
        try:
            documents = [each.value for each in read_documents(text)]
        except UnreadableError:
            continue
        for document in documents:
            if reading.text(document, "kind") == "Configuration":
                found = reading.part(document, "integrations").get("frameworks")
                return frozenset(found if isinstance(found, list) else ())
    return None


async def _gpus(cluster: Cluster, resources: tuple[str, ...]) -> dict[str, int]:
    nodes = await cluster.list("Node", None)
    offers = [reading.part(node, "status", "allocatable") for node in nodes.items] if nodes else []
    return {resource: sum(parse_quantity(offer.get(resource, "0")) for offer in offers) for resource in resources}


async def _resolves(name: str) -> bool:
    try:
        await asyncio.get_running_loop().getaddrinfo(name, None)
    except socket.gaierror:
        return False
    return True
