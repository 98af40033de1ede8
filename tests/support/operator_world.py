"""A small cluster in memory: what the operator's decisions do is kept as objects, and the tests play everybody else.

It keeps the API server's promises that decisions build on: UIDs, names that are taken, deletion in the foreground,
owner references that take children along, and a status that is written before anything else is done.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from cloister_api.events import Event, format_event
from cloister_api.status import FineTuneJobStatus
from cloister_operator.decide.actions import Action, Create, Decision, Delete, Mend
from cloister_operator.decide.core import decide
from cloister_operator.decide.patch import merge_patch
from cloister_operator.names import Step
from cloister_operator.observe.children import Objects
from cloister_operator.observe.facts import Observation
from cloister_operator.observe.observation import observe
from cloister_operator.settings import Settings
from cloister_operator.settings_file import parse_settings
from support.api_jobs import SMALLEST, job_with

START = datetime(2026, 1, 2, 2, 10, tzinfo=UTC)
SETTINGS_YAML = """
images: {trainer: registry.internal/cloister/trainer@sha256:0123}
profiles:
  default: {gpuMemory: 80Gi}
storage:
  endpoint: http://store.storage.svc:8333
  peers: [{namespaceLabels: {kubernetes.io/metadata.name: storage}, podLabels: {app: store}, ports: [8333]}]
network:
  controlAddress: control.cloister-system.svc:8444
  canaryAddress: canary.cloister-system.svc:8445
"""
PLAN = {
    "zeroStage": 2,
    "microBatchTokens": 4096,
    "gradientCheckpointing": True,
    "totalSteps": 120,
    "trainableParameters": 41943040,
    "baseParameters": 8030261248,
    "examples": 640,
    "tokens": 400000,
    "trainedTokens": 200000,
    "estimatedGpuMemoryBytes": 40000000000,
    "warnings": [],
}
PROOF = {"processes": 1, "controlAnswered": 1, "canaryRefused": 1, "time": "2026-01-02T02:11:00+00:00"}
OUTPUT = {
    "uri": "s3://adapters/legal/contracts/u",
    "manifestDigest": "a" * 64,
    "adapterDigest": "b" * 64,
    "sizeBytes": 83886080,
}
PREPARED = {"plan": PLAN, "license": {"id": "llama3.1", "evidence": "LicenseText"}, "egress": PROOF}
PROOFS = {"prepare": PROOF, "train": PROOF, "publish": PROOF, "summary": "3 of 3 processes: …"}
PUBLISHED = {"output": OUTPUT, "evaluation": {"baseLoss": 1.5, "loss": 0.5, "gate": "None"}, "egress": PROOFS}


def settings(**changes: Any) -> Settings:
    """Settings as tests need them, with top-level fields changed."""
    return Settings.model_validate({**parse_settings(SETTINGS_YAML, "settings").to_api(), **changes})


def stamp(moment: datetime) -> str:
    """A time as Kubernetes writes it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


class World:
    """One FineTuneJob, its children, and a clock."""

    def __init__(
        self,
        changes: dict[str, Any] | None = None,
        admin: Settings | None = None,
        job: dict[str, Any] = SMALLEST,
    ) -> None:
        self.now = START
        self.settings = admin or settings()
        self._numbers = itertools.count(1)
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []
        self.other_jobs: list[dict[str, Any]] = []
        self._read: tuple[Any, FineTuneJobStatus] = ({}, FineTuneJobStatus())
        self.ray_installed = True
        self.refused: dict[str, str] = {}
        self.version = 0
        self.made: list[str] = []
        """Names of everything that was created, in order."""
        self.job = job_with(changes or {}, job)
        self.job["metadata"] |= {"uid": self._uid(), "generation": 1, "creationTimestamp": stamp(self.now)}
        self.bump(self.job)

    # the operator

    def observe(self) -> Observation:
        """What is to be seen now."""
        kinds: dict[str, list[dict[str, Any]]] = {}
        for (kind, _), found in self.objects.items():
            kinds.setdefault(kind, []).append(found)
        return observe(
            Objects(
                job=self.job,
                jobs=kinds.get("Job", []),
                pods=kinds.get("Pod", []),
                ray_jobs=kinds.get("RayJob", []),
                ray_clusters=kinds.get("RayCluster", []),
                workloads=kinds.get("Workload", []),
                config_maps=kinds.get("ConfigMap", []),
                network_policies=kinds.get("NetworkPolicy", []),
                events=self.events,
                logs=self.logs,
                other_jobs=[*self.other_jobs, self.job],
                ray_installed=self.ray_installed,
                refused=self.refused,
            ),
            self.settings,
            self.now,
        )

    def decide(self) -> Decision:
        """The decision about what is to be seen now; nothing is done."""
        return decide(self.observe())

    def step(self) -> Decision:
        """Decide, store the status, act."""
        decision = self.decide()
        self.store(decision.status)
        for action in decision.actions:
            self.act(action)
        return decision

    def settle(self, most: int = 20) -> FineTuneJobStatus:
        """Decide until nothing changes any more; what is deleted is gone at once."""
        for _ in range(most):
            before = json.dumps([self.job, sorted(self.objects), self.made])
            self.step()
            self.collect()
            if json.dumps([self.job, sorted(self.objects), self.made]) == before:
                return self.status
        raise AssertionError(f"no rest after {most} decisions: {self.status.to_api()}")

    def store(self, status: FineTuneJobStatus) -> None:
        """Write a status as the edge does: by a merge patch, through JSON."""
        old, new = self.job.get("status", {}), status.to_api()
        merged = json.loads(json.dumps(_merged(old, merge_patch(old, new))))
        assert merged == new
        self.job["status"] = merged

    def patch_status(self, patch: dict[str, Any]) -> None:
        """Write a status as the API server does."""
        self.job["status"] = json.loads(json.dumps(_merged(self.job.get("status", {}), patch)))
        self.bump(self.job)

    def bump(self, found: dict[str, Any]) -> None:
        """An object was written: it has a new version."""
        self.version += 1
        found["metadata"]["resourceVersion"] = str(self.version)

    def act(self, action: Action) -> None:
        """Do what a decision asks for, as the API server would."""
        if isinstance(action, Delete):
            self.delete(action)
            return
        rendered = copy.deepcopy(action.object)
        key = (rendered["kind"], rendered["metadata"]["name"])
        if isinstance(action, Create) and (key in self.objects or key[1] in self.refused):
            return
        if isinstance(action, Mend):
            self.patch(*key, {"spec": merge_patch(self.objects[key]["spec"], rendered["spec"])})
            return
        assert "deletionTimestamp" not in self.job["metadata"], "made after deletion"
        rendered["metadata"] |= {"uid": self._uid(), "creationTimestamp": stamp(self.now)}
        if key not in self.objects:
            self.made.append(f"{key[0]} {key[1]}")
        self.objects[key] = rendered
        self.bump(rendered)

    def patch(self, kind: str, name: str, patch: dict[str, Any]) -> None:
        """Change an object by a merge patch."""
        self.objects[kind, name] = _merged(self.objects[kind, name], patch)
        self.bump(self.objects[kind, name])

    def delete(self, action: Delete) -> None:
        """Mark for deletion, if the UID is still the same."""
        found = self.job if action.kind == "FineTuneJob" else self.objects.get((action.kind, action.name))
        if found is not None and found["metadata"]["uid"] == action.uid:
            found["metadata"].setdefault("deletionTimestamp", stamp(self.now))
            self.bump(found)

    def collect(self) -> None:
        """The garbage collector: what is being deleted goes, with all that it controls."""
        while gone := [key for key, found in self.objects.items() if self._is_gone(found)]:
            for key in gone:
                del self.objects[key]

    def _is_gone(self, found: dict[str, Any]) -> bool:
        uids = {one["metadata"]["uid"] for one in (*self.objects.values(), self.job)}
        owners = found["metadata"].get("ownerReferences", [])
        orphan = bool(owners) and all(owner["uid"] not in uids for owner in owners)
        return orphan or "deletionTimestamp" in found["metadata"]

    # what is there

    @property
    def status(self) -> FineTuneJobStatus:
        """The stored status."""
        stored = self.job.get("status", {})
        if self._read[0] is not stored:
            self._read = stored, FineTuneJobStatus.model_validate(stored)
        return self._read[1]

    def conditions(self) -> dict[str, tuple[str, str]]:
        """Status and reason of every condition."""
        return {found.type.value: (found.status, found.reason) for found in self.status.conditions or []}

    def find(self, kind: str) -> list[dict[str, Any]]:
        """All objects of a kind."""
        return [found for (each, _), found in self.objects.items() if each == kind]

    @property
    def ray_job(self) -> dict[str, Any]:
        """The only RayJob."""
        (found,) = self.find("RayJob")
        return found

    def ray_jobs(self) -> Iterator[dict[str, Any]]:
        """RayJobs that are not going away."""
        return (found for found in self.find("RayJob") if "deletionTimestamp" not in found["metadata"])

    # everybody else

    def pass_time(self, **length: float) -> None:
        """The clock goes on."""
        self.now += timedelta(**length)

    def change(self, path: str, value: Any) -> None:
        """Somebody edits the spec."""
        self.job = job_with({f"spec.{path}": value}, self.job)
        self.job["metadata"]["generation"] += 1
        self.bump(self.job)

    def add(self, kind: str, name: str, owner: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
        """An object that somebody else made."""
        metadata = {"name": name, "namespace": "legal", "uid": self._uid(), "creationTimestamp": stamp(self.now)}
        metadata |= fields.pop("metadata", {})
        if owner is not None:
            reference = {"kind": owner["kind"], "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}
            api_version = owner.get("apiVersion", "v1")
            metadata["ownerReferences"] = [{**reference, "apiVersion": api_version, "controller": True}]
        found = {"kind": kind, "metadata": metadata, **fields}
        self.objects[kind, name] = found
        self.bump(found)
        return found

    def pod(
        self,
        owner: dict[str, Any],
        role: str,
        *,
        phase: str = "Running",
        container: str = "main",
        state: dict[str, Any] | None = None,
        node: str = "node-1",
        **status: Any,
    ) -> dict[str, Any]:
        """A pod of `owner`, as scheduler and kubelet report it."""
        scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(self.now)}
        conditions = [scheduled] if node else []
        return self.add(
            "Pod",
            f"{owner['metadata']['name']}-{next(self._numbers)}",
            owner,
            metadata={"labels": {"ray.io/node-type": role}},
            spec={"nodeName": node} if node else {},
            status={
                "phase": phase,
                "conditions": conditions,
                "containerStatuses": [{"name": container, "ready": phase == "Running", "state": state or {}}],
                **status,
            },
        )

    def step_job(self, step: Step) -> dict[str, Any]:
        """The Job of a step."""
        return self.objects["Job", f"{self.job['metadata']['name']}-{step}"]

    def step_ends(self, step: Step, message: dict[str, Any] | str | None, exit_code: int = 0, **ended: Any) -> None:
        """The step's pod ends with a termination message, and its Job with it."""
        job = self.step_job(step)
        text = message if isinstance(message, str) else json.dumps(message) if message else ""
        reason = "Completed" if exit_code == 0 else "Error"
        terminated = {"exitCode": exit_code, "reason": reason, "message": text, **ended}
        phase = "Succeeded" if exit_code == 0 else "Failed"
        self.pod(job, step.value, phase=phase, container=step.value, state={"terminated": terminated})
        self.job_ends(job, "Complete" if exit_code == 0 else "Failed")

    def job_ends(self, job: dict[str, Any], kind: str, reason: str = "") -> None:
        """The Job controller's verdict."""
        condition = {"type": kind, "status": "True", "reason": reason, "lastTransitionTime": stamp(self.now)}
        job["status"] = {"conditions": [condition]}

    def succeed(self, step: Step, result: dict[str, Any]) -> None:
        """The step ends well."""
        self.step_ends(step, {"version": 1, "outcome": "Succeeded", "result": result})

    def refuse(self, step: Step, reason: str, message: str = "It is so.", exit_code: int = 11, **more: Any) -> None:
        """The step ends with a failure of its own words."""
        outcome = "Refused" if exit_code == 10 else "Failed"
        said = {"version": 1, "outcome": outcome, "reason": reason, "message": message, **more}
        self.step_ends(step, said, exit_code)

    def prepared(self) -> None:
        """From the first look to a RayJob."""
        self.settle()
        self.succeed(Step.PREPARE, PREPARED)
        self.settle()

    def cluster(self) -> dict[str, Any]:
        """KubeRay's RayCluster of the newest RayJob, made when it is missing."""
        (ray_job,) = self.ray_jobs()
        name = f"{ray_job['metadata']['name']}-cluster"
        if ("RayCluster", name) not in self.objects:
            ready = {"type": "HeadPodReady", "status": "True", "lastTransitionTime": stamp(self.now)}
            self.add("RayCluster", name, ray_job, status={"conditions": [ready]})
        return self.objects["RayCluster", name]

    def ray(self, job_status: str, deployment: str = "Running", **status: Any) -> None:
        """KubeRay's status of the newest RayJob."""
        (ray_job,) = self.ray_jobs()
        ray_job["status"] = {"jobStatus": job_status, "jobDeploymentStatus": deployment, **status}

    def running(self) -> None:
        """Head, workers and submitter run, and Ray says so."""
        cluster = self.cluster()
        self.pod(cluster, "head")
        for _ in range(self.job["spec"].get("distribution", {}).get("workers", 1)):
            self.pod(cluster, "worker")
        self.submitter()
        self.ray("RUNNING")

    def submitter(self) -> dict[str, Any]:
        """The submitter's pod of the newest RayJob."""
        (ray_job,) = self.ray_jobs()
        name = ray_job["metadata"]["name"]
        job = self.objects.get(("Job", name)) or self.add("Job", name, ray_job)
        return next((pod for pod in self.find("Pod") if _owned(pod, job)), None) or self.pod(job, "submitter")

    def say(self, event: Event, attempt: int | None = None) -> None:
        """The driver says something on standard output."""
        line = self.line(event, attempt)
        uid = self.submitter()["metadata"]["uid"]
        self.logs[uid] = self.logs.get(uid, "") + line + "\n"

    def line(self, event: Event, attempt: int | None = None) -> str:
        """An event line."""
        return format_event(self.job["metadata"]["uid"], attempt or self.status.attempt or 1, self.now, event)

    def warn(self, about: dict[str, Any], reason: str, message: str) -> None:
        """A Warning Event."""
        self.events.append(
            {
                "type": "Warning",
                "reason": reason,
                "message": message,
                "involvedObject": {"uid": about["metadata"]["uid"]},
                "firstTimestamp": stamp(self.now),
                "lastTimestamp": stamp(self.now),
            }
        )

    def _uid(self) -> str:
        return f"00000000-0000-4000-8000-{next(self._numbers):012d}"


def _owned(found: dict[str, Any], owner: dict[str, Any]) -> bool:
    return any(one["uid"] == owner["metadata"]["uid"] for one in found["metadata"].get("ownerReferences", []))


def _merged(old: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value)
    return merged
