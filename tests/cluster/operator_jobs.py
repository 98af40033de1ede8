"""A FineTuneJob on the real API, and what kubelets, Ray and people do to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cloister_api.events import Event, format_event
from cloister_api.exit_codes import exit_code_for
from cloister_api.reasons import ConditionReason, FailureReason
from cloister_api.termination import Outcome, TerminationMessage
from cloister_operator.decide.messages import NEXT_STEPS
from cluster.control_plane.access import wait_until
from cluster.control_plane.plane import ControlPlane
from cluster.edges.dashboard import RayDashboard
from cluster.edges.kubelet import Kubelet
from cluster.edges.pod_status import Ended, Running, State, role_of
from cluster.jobs import create_job, jobs_path
from cluster.operator_process import OperatorProcess
from support.operator_values import PREPARED, PUBLISHED, SETTINGS_YAML

SETTINGS = f"""{SETTINGS_YAML}
allowed:
  uriPrefixes: [s3://models, s3://datasets, "s3://adapters/{{namespace}}", pvc://weights]
  claims: [weights]
"""
TIMEOUT_S = 60.0
DENY_POLICY = "cloister-default-deny"
SUBMITTED_BY = "batch.kubernetes.io/job-name"
PATHS = {
    "pods": "/api/v1",
    "configmaps": "/api/v1",
    "jobs": "/apis/batch/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
    "rayjobs": "/apis/ray.io/v1",
    "rayclusters": "/apis/ray.io/v1",
    "workloads": "/apis/kueue.x-k8s.io/v1beta1",
}
FAILURES = frozenset(reason.value for reason in FailureReason)

Object = dict[str, Any]


def succeeded(result: Object) -> Ended:
    """How a step's container ends that leaves this result."""
    return Ended(0, TerminationMessage(outcome=Outcome.SUCCEEDED, result=result).encode())


def failed(reason: str, message: str = "It is so.") -> Ended:
    """How a step's container ends that leaves this reason."""
    known = FailureReason(reason)
    outcome = Outcome.REFUSED if known.facts.refusal else Outcome.FAILED
    said = TerminationMessage(outcome=outcome, reason=known, message=message)
    return Ended(int(exit_code_for(known)), said.encode())


def assert_says_the_next_step(status: Object) -> None:
    """Whoever reads the message of a job that waits or failed knows what to do; one that advances has none."""
    phase, reason, message = (status.get(field, "") for field in ("phase", "reason", "message"))
    if phase in ("Suspended", "Held", "Queued", "Failed"):
        assert reason, f"{phase} has no reason: {status}"
    if not reason:
        assert not message, f"{phase} says something without a reason: {message}"
    elif phase != "Complete":
        known = FailureReason(reason).facts.action if reason in FAILURES else NEXT_STEPS[ConditionReason(reason)]
        assert known in message, f"{phase} {reason} does not say what to do: {message}"


@dataclass(frozen=True)
class Scene:
    """A namespace with a job in it, and everybody who plays a part in the job's life."""

    plane: ControlPlane
    operator: OperatorProcess
    kubelet: Kubelet
    dashboard: RayDashboard
    namespace: str
    name: str = "contracts"

    # the job's owner

    def apply(self, changes: Object | None = None) -> Object:
        """Make the job, the smallest one with fields set."""
        own = {"metadata.name": self.name, "spec.output.uri": f"s3://adapters/{self.namespace}/{self.name}"}
        return create_job(self.plane, self.namespace, {**own, **(changes or {})})

    def edit(self, **spec: Any) -> None:
        """Change fields of the spec; None removes one."""
        self.plane.api.patch(jobs_path(self.namespace, self.name), {"spec": spec})

    def delete(self) -> None:
        """`kubectl delete`."""
        self.plane.api.delete(jobs_path(self.namespace, self.name), propagationPolicy="Background")

    # what is there

    @property
    def exists(self) -> bool:
        """Whether the job is there."""
        return self.plane.api.exists(jobs_path(self.namespace, self.name))

    @property
    def job(self) -> Object:
        """The job as it is now."""
        found: Object = self.plane.api.get(jobs_path(self.namespace, self.name))
        return found

    @property
    def status(self) -> Object:
        """The job's status."""
        found: Object = self.job.get("status", {})
        return found

    def conditions(self) -> dict[str, tuple[str, str]]:
        """Status and reason of the job's conditions."""
        return {each["type"]: (each["status"], each["reason"]) for each in self.status["conditions"]}

    def items(self, plural: str) -> list[Object]:
        """All objects of a kind in the namespace."""
        found: list[Object] = self.plane.api.get(f"{PATHS[plural]}/namespaces/{self.namespace}/{plural}")["items"]
        return found

    def names(self, plural: str) -> list[str]:
        """The names of `items`, sorted."""
        return sorted(each["metadata"]["name"] for each in self.items(plural))

    def pods(self, role: str) -> list[Object]:
        """The job's pods of one role that are not being deleted."""
        return [
            pod for pod in self.items("pods") if role_of(pod) == role and "deletionTimestamp" not in pod["metadata"]
        ]

    def running(self, role: str) -> Object:
        """The pod of that role, once it runs."""

        def found() -> Object | None:
            return next((pod for pod in self.pods(role) if pod.get("status", {}).get("phase") == "Running"), None)

        pod: Object = wait_until(found, f"the {role} of {self.name} to run", TIMEOUT_S)
        return pod

    # waiting

    def wait_for(self, phase: str, reason: str | None = None, words: str = "") -> Object:
        """The status, once the job is in that phase with that reason and these words in its message."""

        def is_there(status: Object) -> bool:
            found = (status.get("phase"), status.get("reason"))
            return found == (phase, reason) and words in status.get("message", "")

        return self.wait_until(is_there, " ".join(filter(None, (phase, reason, words))))

    def wait_until(self, holds: Callable[[Object], Any], what: str, timeout_s: float = TIMEOUT_S) -> Object:
        """The status, once something holds for it. AssertionError with all that may explain why it never did."""
        last: Object = {}

        def found() -> Object | None:
            assert self.operator.running, f"The operator ended.\n{self.operator.log_end()}"
            last.clear()
            last.update(self.status)
            assert_says_the_next_step(last)
            return dict(last) if holds(last) else None

        try:
            status: Object = wait_until(found, f"{self.namespace}/{self.name}: {what}", timeout_s)
        except TimeoutError as error:
            raise AssertionError(f"{error}\nstatus: {last}\n{self.operator.log_end(6000)}") from None
        return status

    def wait_until_gone(self, *strangers: str) -> None:
        """Wait until the job has left nothing in the namespace; names that begin like a stranger's are not its own."""

        def left(plural: str) -> list[str]:
            return [name for name in self.names(plural) if not name.startswith(strangers)]

        wait_until(lambda: not self.exists, f"the end of {self.name}", TIMEOUT_S)
        for plural in ("jobs", "rayjobs", "rayclusters", "pods", "networkpolicies"):
            wait_until(lambda kind=plural: not left(kind), f"no {plural} in {self.namespace}", TIMEOUT_S)
        wait_until(lambda: f"{self.name}-run" not in left("configmaps"), "the run file's end", TIMEOUT_S)

    # kubelet and Ray

    def step_ends(self, role: str, state: State) -> None:
        """prepare's or publish's pods, now and later, end like this."""
        self.kubelet.order(state, self.namespace, role=role)

    def runs(self, role: str) -> None:
        """The pods of that role, now and later, run, whatever they were ordered before."""
        self.kubelet.order(Running(), self.namespace, role=role)

    def prepare_succeeds(self) -> None:
        """prepare ends with a plan as soon as it runs."""
        self.step_ends("prepare", succeeded(PREPARED))

    def publish_succeeds(self) -> None:
        """publish ends with an adapter as soon as it runs."""
        self.step_ends("publish", succeeded(PUBLISHED))

    def ray_says(self, status: str, message: str = "", *, attempt: int = 1) -> None:
        """What Ray answers about the driver of an attempt from now on."""
        self.dashboard.tell(self.namespace, f"{self.name}-{attempt}", status, message)

    def ray_ends(self, status: str, message: str = "", *, attempt: int = 1) -> None:
        """The driver of an attempt ends, and its submitter with it."""
        self.ray_says(status, message, attempt=attempt)
        self.kubelet.order(Ended(0), self.namespace, pod=self.submitter(attempt))

    def submitter(self, attempt: int = 1) -> str:
        """The name of the pod that submits an attempt, once it runs."""

        def found() -> str | None:
            for pod in self.pods("submitter"):
                if pod["metadata"]["labels"].get(SUBMITTED_BY) == f"{self.name}-{attempt}":
                    return str(pod["metadata"]["name"])
            return None

        return str(wait_until(found, f"the submitter of attempt {attempt}", TIMEOUT_S))

    def line(self, event: Event, attempt: int = 1) -> str:
        """An event as the driver writes it."""
        return format_event(self.job["metadata"]["uid"], attempt, datetime.now(UTC), event)

    def driver_says(self, event: Event, attempt: int = 1) -> None:
        """The driver writes an event to its standard output."""
        self.kubelet.say(self.namespace, self.submitter(attempt), self.line(event, attempt) + "\n")

    @contextmanager
    def pods_linger(self) -> Iterator[None]:
        """Pods that are deleted meanwhile stay Terminating, as while their containers take their time to end."""
        self.kubelet.linger(self.namespace)
        try:
            yield
        finally:
            self.kubelet.let_go(self.namespace)

    # ways through a job's life

    def preparing(self, changes: Object | None = None) -> None:
        """Make the job and wait until prepare runs."""
        self.apply(changes)
        self.running("prepare")
        self.wait_for("Preparing")

    def training(self, changes: Object | None = None) -> Object:
        """Make the job and wait until it trains."""
        self.prepare_succeeds()
        self.ray_says("RUNNING")
        self.apply(changes)
        return self.wait_for("Training")

    def publishing(self, changes: Object | None = None) -> None:
        """Make the job and wait until publish runs."""
        self.training(changes)
        self.ray_ends("SUCCEEDED")
        self.running("publish")
        self.wait_for("Publishing")
