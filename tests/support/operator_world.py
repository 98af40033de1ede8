"""The small cluster in memory, with everybody else in it: tests play users, controllers, kubelets, KubeRay and Ray."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from cloister_api.events import Event, format_event
from cloister_operator.names import Step
from support.api_jobs import job_with
from support.operator_kept import KeptWorld
from support.operator_values import PREPARED, stamp


class World(KeptWorld):
    """One FineTuneJob, its children, a clock, and what happens to them."""

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
        metadata = {"name": name, "namespace": "legal", "uid": self.new_uid(), "creationTimestamp": stamp(self.now)}
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
            f"{owner['metadata']['name']}-{next(self.numbers)}",
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


def _owned(found: dict[str, Any], owner: dict[str, Any]) -> bool:
    return any(one["uid"] == owner["metadata"]["uid"] for one in found["metadata"].get("ownerReferences", []))
