"""FineTuneJobs on a real cluster: the quickstart's and a tiny one, and what a person sees of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cloister_api.events import Progress, Restarted, parse_event
from cloister_api.yaml_tree import read_documents
from cluster.control_plane.access import Cluster, KubectlError, wait_until
from cluster.jobs import jobs_path
from e2e.installation import EXAMPLE, NAMESPACE, SLOW_ROWS, TINY_ROWS, tiny_uri
from support.api_jobs import job_with

Object = dict[str, Any]
LIMIT_S = 900.0
FINAL = ("Complete", "Failed")
CHECKPOINT_S = 3


def quickstart_job(namespace: str, output: str) -> Object:
    """examples/01-quickstart/job.yaml, for another namespace and prefix."""
    (document,) = read_documents((EXAMPLE / "job.yaml").read_text())
    job: Object = document.value
    return job_with({"metadata.namespace": namespace, "spec.output.uri": output}, job)


def tiny_job(namespace: str, name: str, changes: Mapping[str, Any] | None = None) -> Object:
    """A job on random weights that trains for seconds."""
    job = {
        "apiVersion": "cloister.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "model": {"uri": tiny_uri("model")},
            "dataset": {"uri": tiny_uri(TINY_ROWS)},
            "training": {"maxLength": 64, "globalBatchSize": 8, "epochs": 1},
            "distribution": {"workers": 1, "gpusPerWorker": 0},
            "output": {"uri": f"s3://adapters/{namespace}/{name}"},
        },
    }
    return job_with(dict(changes or {}), job)


def long_job(namespace: str, name: str, steps: int, changes: Mapping[str, Any] | None = None) -> Object:
    """A job on random weights with two workers, many steps and a checkpoint every few seconds, to be interrupted."""
    long = {
        "spec.dataset.uri": tiny_uri(SLOW_ROWS),
        "spec.training": {"maxLength": 128, "globalBatchSize": 16, "epochs": 1000, "maxSteps": steps},
        "spec.distribution": {"workers": 2, "gpusPerWorker": 0, "zeroStage": 2},
        "spec.checkpoint.interval": f"{CHECKPOINT_S}s",
        "spec.evaluation.everyEpochs": 1000,
    }
    return job_with(dict(changes or {}), tiny_job(namespace, name, long))


@dataclass(frozen=True)
class FineTune:
    """A FineTuneJob that was applied."""

    cluster: Cluster
    namespace: str
    name: str

    @classmethod
    def apply(cls, cluster: Cluster, job: Object) -> FineTune:
        """`kubectl apply`, as the job's namespace and name say."""
        cluster.kubectl("apply", "-f", "-", text=json.dumps(job))
        return cls(cluster, job["metadata"]["namespace"], job["metadata"]["name"])

    def read(self) -> Object:
        """The job as it is."""
        found: Object = self.cluster.api.get(jobs_path(self.namespace, self.name))
        return found

    @property
    def status(self) -> Object:
        """Its status; empty before the operator has seen it."""
        found: Object = self.read().get("status", {})
        return found

    @property
    def phase(self) -> str:
        """Its phase."""
        found: str = self.status.get("phase", "")
        return found

    @property
    def step(self) -> int:
        """Optimizer steps made, as status says."""
        return int(self.status.get("progress", {}).get("step", 0))

    @property
    def checkpoint(self) -> int:
        """Step of its newest checkpoint, as status says; 0: none."""
        return int(self.status.get("checkpoint", {}).get("step", 0))

    def condition(self, kind: str) -> tuple[str, str]:
        """Status and reason of a condition."""
        found = (each for each in self.status.get("conditions", []) if each["type"] == kind)
        return next(((each["status"], each["reason"]) for each in found), ("", ""))

    def pods(self, role: str) -> list[Object]:
        """Its pods of a role (prepare, head, worker, submitter, publish) that are not being deleted."""
        selector = f"cloister.dev/job={self.name},cloister.dev/role={role}"
        path = f"/api/v1/namespaces/{self.namespace}/pods?labelSelector={selector}"
        return [pod for pod in self.cluster.api.get(path)["items"] if "deletionTimestamp" not in pod["metadata"]]

    def running_pods(self, role: str) -> list[str]:
        """Names of the pods of a role whose container runs."""
        return [pod["metadata"]["name"] for pod in self.pods(role) if pod["status"].get("phase") == "Running"]

    def starts(self) -> tuple[tuple[str, int], ...]:
        """The first step that each start of the ranks told in the newest submitter's log, with the pod's name."""
        begun = [pod for pod in self.pods("submitter") if pod["status"].get("phase") != "Pending"]
        if not begun:  # it is between two
            return ()
        pod = max(begun, key=lambda each: str(each["metadata"]["creationTimestamp"]))["metadata"]["name"]
        text = self.cluster.kubectl("logs", pod, namespace=self.namespace)
        uid, attempt = self.read()["metadata"]["uid"], self.status["attempt"]
        found: list[tuple[str, int]] = []
        fresh = True
        for event in filter(None, (parse_event(line, uid, attempt) for line in text.splitlines())):
            if isinstance(event, Restarted):
                fresh = True
            elif isinstance(event, Progress) and fresh:
                found.append((pod, event.step))
                fresh = False
        return tuple(found)

    def events(self) -> list[str]:
        """`Reason: message` of its Events."""
        selector = f"involvedObject.kind=FineTuneJob,involvedObject.name={self.name}"
        items = self.cluster.api.get(f"/api/v1/namespaces/{self.namespace}/events?fieldSelector={selector}")["items"]
        return [f"{each['reason']}: {each['message']}" for each in items]

    def patch(self, spec: Object) -> None:
        """Change fields of its spec."""
        self.cluster.kubectl(
            "patch", "ftj", self.name, "--type=merge", "--patch", json.dumps({"spec": spec}), namespace=self.namespace
        )

    def delete(self) -> None:
        """`kubectl delete`, which returns when the job is gone."""
        self.cluster.kubectl("delete", "ftj", self.name, namespace=self.namespace)

    def wait(self, condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
        """Wait for something that must happen before the job ends. AssertionError with all there is to know else."""

        def holds() -> Any:
            ended = self.phase in FINAL
            found = condition()
            assert found or not ended, f"waited for {what}\n{self.told()}"
            return found

        try:
            return wait_until(holds, what, limit_s)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.told()}") from error

    def wait_for(self, phase: str, limit_s: float = LIMIT_S) -> Object:
        """The status, once the job is in this phase."""
        self.wait(lambda: self.phase == phase, f"{self.namespace}/{self.name} to be {phase}", limit_s)
        return self.status

    def wait_for_newer_checkpoint(self, limit_s: float = LIMIT_S) -> int:
        """Train on until a checkpoint newer than those known so far is complete; its step."""
        before = self.checkpoint
        self.wait(lambda: self.checkpoint > before, f"a checkpoint after step {before}", limit_s)
        return self.checkpoint

    def told(self) -> str:
        """Everything that may explain why it did not come through."""
        commands = [
            (self.namespace, "get", "events", "--sort-by=.lastTimestamp"),
            (self.namespace, "get", "pods", "--output=wide"),
            (NAMESPACE, "logs", "deployment/cloister-operator", "--tail=60"),
            *(
                (self.namespace, "logs", pod["metadata"]["name"], "--tail=30")
                for role in ("prepare", "submitter", "publish")
                for pod in self.pods(role)
            ),
        ]
        parts = [json.dumps(self.status, indent=1)]
        for namespace, *words in commands:
            try:
                parts.append(self.cluster.kubectl(*words, namespace=namespace))
            except KubectlError as error:  # a pod that never started has no log
                parts.append(str(error))
        return "\n".join(parts)
