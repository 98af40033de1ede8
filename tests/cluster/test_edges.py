"""What is played where no kubelet and no Ray run: the real controllers take it for the real thing."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any

import pytest

from cluster.control_plane.access import wait_until
from cluster.control_plane.plane import ControlPlane
from cluster.edges.dashboard import RayDashboard
from cluster.edges.kubelet import Kubelet
from cluster.edges.pod_status import Ended, Gone, Running, Waiting
from cluster.ray_jobs import RAY, create_batch_job, create_pod, create_ray_job
from support.child_process import Program

pytestmark = pytest.mark.usefixtures("gpu_nodes")


def pod_path(namespace: str, name: str) -> str:
    return f"/api/v1/namespaces/{namespace}/pods/{name}"


def pods(plane: ControlPlane, namespace: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = plane.api.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
    return found


def wait_for_phase(plane: ControlPlane, namespace: str, name: str, phase: str) -> dict[str, Any]:
    def pod() -> dict[str, Any] | None:
        found: dict[str, Any] = plane.api.get(pod_path(namespace, name))
        return found if found["status"]["phase"] == phase else None

    found: dict[str, Any] = wait_until(pod, f"{name} to be {phase}")
    return found


def test_a_bound_pod_runs_and_has_a_log(control_plane: ControlPlane, kubelet: Kubelet, namespace: str) -> None:
    create_pod(control_plane, namespace, "x")
    pod = wait_for_phase(control_plane, namespace, "x", "Running")
    assert all(condition["status"] == "True" for condition in pod["status"]["conditions"])
    kubelet.say(namespace, "x", "one\ntwo\nthree\n")
    assert control_plane.kubectl("logs", "x", "--tail=2", namespace=namespace) == "two\nthree\n"


def test_a_pod_without_its_image_waits(control_plane: ControlPlane, kubelet: Kubelet, namespace: str) -> None:
    kubelet.order(Waiting("ImagePullBackOff", "Back-off pulling image"), namespace)
    create_pod(control_plane, namespace, "x")
    waiting = wait_until(lambda: container_state(control_plane, namespace, "x").get("waiting"), "the kubelet")
    assert waiting == {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
    kubelet.order(Running(), namespace)
    wait_for_phase(control_plane, namespace, "x", "Running")


def test_a_termination_message_keeps_its_end(control_plane: ControlPlane, kubelet: Kubelet, namespace: str) -> None:
    kubelet.order(Ended(10, "x" * 5000 + "end"), namespace)
    create_batch_job(control_plane, namespace, "job")
    wait_until(lambda: [pod for pod in pods(control_plane, namespace) if pod["status"]["phase"] == "Failed"], "a pod")
    (status,) = pods(control_plane, namespace)[0]["status"]["containerStatuses"]
    ended = status["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"], len(ended["message"])) == (10, "Error", 4096)
    assert ended["message"].endswith("xend")


def test_a_job_completes_when_its_pod_does(control_plane: ControlPlane, kubelet: Kubelet, namespace: str) -> None:
    create_batch_job(control_plane, namespace, "job")
    kubelet.order(Ended(0, "done"), namespace)
    job = f"/apis/batch/v1/namespaces/{namespace}/jobs/job"
    wait_until(lambda: control_plane.api.get(job)["status"].get("succeeded") == 1, "the Job's controller")


def test_a_container_that_may_restart_does(control_plane: ControlPlane, kubelet: Kubelet, namespace: str) -> None:
    create_pod(control_plane, namespace, "x")
    kubelet.order(Ended(137, reason="OOMKilled"), namespace, pod="x")
    waiting = wait_until(lambda: container_state(control_plane, namespace, "x").get("waiting"), "the crash")
    assert waiting["reason"] == "CrashLoopBackOff"
    kubelet.order(Running(), namespace, pod="x")
    wait_until(lambda: container_state(control_plane, namespace, "x").get("running"), "the restart")
    (status,) = control_plane.api.get(pod_path(namespace, "x"))["status"]["containerStatuses"]
    assert status["restartCount"] == 1
    assert status["lastState"]["terminated"]["reason"] == "OOMKilled"


def test_a_pod_that_is_evicted_says_so(control_plane: ControlPlane, kubelet: Kubelet, namespace: str) -> None:
    create_pod(control_plane, namespace, "x")
    kubelet.order(Gone("Evicted", "The node was low on resource: ephemeral-storage."), namespace)
    assert wait_for_phase(control_plane, namespace, "x", "Failed")["status"]["reason"] == "Evicted"


def test_a_deleted_pod_goes_unless_its_node_is_silent(
    control_plane: ControlPlane, kubelet: Kubelet, namespace: str
) -> None:
    create_pod(control_plane, namespace, "x")
    wait_for_phase(control_plane, namespace, "x", "Running")
    kubelet.linger(namespace)
    control_plane.api.delete(pod_path(namespace, "x"))
    assert "deletionTimestamp" in control_plane.api.get(pod_path(namespace, "x"))["metadata"]
    kubelet.let_go(namespace)
    wait_until(lambda: not control_plane.api.exists(pod_path(namespace, "x")), "the pod's end")


def test_a_ray_job_goes_from_create_to_complete(
    control_plane: ControlPlane, kuberay: Program, kubelet: Kubelet, dashboard: RayDashboard, namespace: str
) -> None:
    dashboard.tell(namespace, "x", "RUNNING")
    create_ray_job(control_plane, namespace, "x")
    wait_until(lambda: ray_status(control_plane, namespace).get("jobStatus") == "RUNNING", "KubeRay")
    (submitter,) = [pod for pod in pods(control_plane, namespace) if "job-name" in pod["metadata"]["labels"]]
    dashboard.tell(namespace, "x", "SUCCEEDED", "Job finished successfully.")
    kubelet.order(Ended(), namespace, pod=submitter["metadata"]["name"])
    wait_until(lambda: ray_status(control_plane, namespace).get("jobDeploymentStatus") == "Complete", "KubeRay")
    assert ray_status(control_plane, namespace)["jobStatus"] == "SUCCEEDED"
    assert {call.method for call in dashboard.calls_for(namespace, "x")} == {"GET"}


def test_a_head_that_does_not_answer_leaves_the_job_without_a_status(
    control_plane: ControlPlane, kuberay: Program, kubelet: Kubelet, dashboard: RayDashboard, namespace: str
) -> None:
    dashboard.silence(namespace, "x")
    create_ray_job(control_plane, namespace, "x")
    wait_until(lambda: dashboard.calls_for(namespace, "x"), "KubeRay's first question")
    assert not ray_status(control_plane, namespace).get("jobStatus")


def test_the_dashboard_answers_for_nothing_else(dashboard: RayDashboard, dashboard_port: int) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{dashboard_port}/api/jobs/")
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request)
    assert refusal.value.code == 400
    refusal.value.close()


def container_state(plane: ControlPlane, namespace: str, name: str) -> dict[str, Any]:
    statuses = plane.api.get(pod_path(namespace, name))["status"].get("containerStatuses", [])
    return statuses[0]["state"] if statuses else {}


def ray_status(plane: ControlPlane, namespace: str) -> dict[str, Any]:
    job: dict[str, Any] = plane.api.get(f"{RAY}/namespaces/{namespace}/rayjobs/x")
    return job.get("status", {})
