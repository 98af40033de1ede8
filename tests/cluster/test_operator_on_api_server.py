"""The operator on a real API server with the real KubeRay: a job's way from apply to a published adapter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from cloister_api.events import Progress, format_event
from cluster.control_plane.access import wait_until
from cluster.control_plane.plane import ControlPlane
from cluster.edges.dashboard import RayDashboard
from cluster.edges.kubelet import Kubelet
from cluster.edges.pod_status import Ended, Running
from cluster.operator_process import operator
from support.api_jobs import job_with
from support.child_process import Program
from support.operator_world import OUTPUT, PREPARED, PUBLISHED

pytestmark = pytest.mark.usefixtures("kuberay", "gpu_nodes")


@pytest.fixture(scope="module")
def cloister(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The operator, running."""
    namespace = control_plane.create_namespace()
    program = operator(control_plane, namespace, tmp_path_factory.mktemp("operator"))
    program.start()
    yield program
    program.stop()
    control_plane.delete_namespace(namespace)


def jobs_path(namespace: str, name: str = "") -> str:
    return f"/apis/cloister.dev/v1alpha1/namespaces/{namespace}/finetunejobs" + (f"/{name}" if name else "")


def apply(plane: ControlPlane, namespace: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    job = job_with(
        {"metadata.namespace": namespace, "spec.output.uri": f"s3://adapters/{namespace}", **(changes or {})}
    )
    made: dict[str, Any] = plane.api.create(jobs_path(namespace), job)
    return made


def wait_for(plane: ControlPlane, namespace: str, phase: str, program: Program) -> dict[str, Any]:
    def status() -> dict[str, Any] | None:
        assert program.running, program.log_end()
        found: dict[str, Any] = plane.api.get(jobs_path(namespace, "contracts")).get("status", {})
        return found if found.get("phase") == phase else None

    try:
        found: dict[str, Any] = wait_until(status, f"phase {phase}", timeout_s=60)
    except TimeoutError as error:
        raise AssertionError(f"{error}\n{program.log_end(6000)}") from None
    return found


def succeeded(result: dict[str, Any]) -> Ended:
    return Ended(0, json.dumps({"version": 1, "outcome": "Succeeded", "result": result}))


def test_a_job_goes_from_apply_to_a_published_adapter(
    control_plane: ControlPlane, cloister: Program, kubelet: Kubelet, dashboard: RayDashboard, namespace: str
) -> None:
    job = apply(control_plane, namespace)
    wait_for(control_plane, namespace, "Preparing", cloister)
    kubelet.order(succeeded(PREPARED), namespace, role="prepare")
    wait_for(control_plane, namespace, "Queued", cloister)

    dashboard.tell(namespace, "contracts-1", "RUNNING")
    wait_for(control_plane, namespace, "Training", cloister)
    made = Progress(step=3, total_steps=9, epoch=0.3, loss=1.5, learning_rate=1e-4, tokens_per_second=9, eta_seconds=60)
    line = format_event(job["metadata"]["uid"], 1, datetime.now(UTC), made)
    pods = control_plane.api.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
    (submitter,) = [
        pod["metadata"]["name"] for pod in pods if pod["metadata"]["labels"].get("cloister.dev/role") == "submitter"
    ]
    kubelet.say(namespace, submitter, line + "\n")
    wait_until(
        lambda: control_plane.api.get(jobs_path(namespace, "contracts"))["status"].get("progress", {}).get("step") == 3,
        "the progress",
    )

    kubelet.order(Ended(0), namespace, role="submitter")
    dashboard.tell(namespace, "contracts-1", "SUCCEEDED")
    wait_for(control_plane, namespace, "Publishing", cloister)
    kubelet.order(succeeded(PUBLISHED), namespace, role="publish")
    status = wait_for(control_plane, namespace, "Complete", cloister)
    assert status["output"] == OUTPUT
    assert [one["reason"] for one in status["attempts"]] == ["Complete"]
    kubelet.order(Running(), namespace)


def test_a_killed_operator_goes_on(
    control_plane: ControlPlane, cloister: Program, kubelet: Kubelet, namespace: str
) -> None:
    cloister.kill()
    apply(control_plane, namespace)
    cloister.start()
    wait_for(control_plane, namespace, "Preparing", cloister)
    cloister.kill()
    kubelet.order(Ended(10, json.dumps({"version": 1, "outcome": "Refused", "reason": "ModelNotFound",
                                        "message": "There is none."})), namespace, role="prepare")  # fmt: skip
    cloister.start()
    status = wait_for(control_plane, namespace, "Failed", cloister)
    assert status["reason"] == "ModelNotFound"
    control_plane.api.delete(jobs_path(namespace, "contracts"), propagationPolicy="Background")
    policies = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"
    wait_until(lambda: not control_plane.api.get(policies)["items"], "the policies to go with the last pod")


def test_a_job_that_is_not_allowed_is_refused(control_plane: ControlPlane, cloister: Program, namespace: str) -> None:
    apply(control_plane, namespace, {"spec.network": {"egress": "Open"}})
    status = wait_for(control_plane, namespace, "Failed", cloister)
    assert status["reason"] == "PolicyDenied"
    assert not control_plane.api.get(f"/apis/batch/v1/namespaces/{namespace}/jobs")["items"]
