"""What happens to a run's pods, node and driver, as KubeRay and the real controllers report it."""

from __future__ import annotations

from typing import Any

from cloister_api.events import CheckpointSaved, Done, FailureSeen
from cloister_api.reasons import FailureReason
from cluster.control_plane.access import wait_until
from cluster.control_plane.kwok import create_node, delete_node
from cluster.edges.pod_status import Ended, Gone
from cluster.operator_jobs import Scene

pytest_plugins = ["cluster.operator_fixtures"]

ROOM_FOR_A_WORKER = {"cpu": "1", "memory": "300Mi", "pods": "9", "nvidia.com/gpu": "1"}
"""Too little memory for a head or a submitter."""
DRIVER_DIED = "Job entrypoint command failed with exit code 1"


def attempts(status: dict[str, Any]) -> list[str | None]:
    return [attempt.get("reason") for attempt in status.get("attempts", [])]


def is_gone(scene: Scene, pod: dict[str, Any]) -> bool:
    return pod["metadata"]["name"] not in scene.names("pods")


def test_a_worker_that_ran_out_of_memory_is_remembered(scene: Scene) -> None:
    """Its container restarts in place, and the driver dies of it later without a word."""
    scene.training()
    worker = scene.running("worker")
    scene.kubelet.order(Ended(137, reason="OOMKilled"), scene.namespace, pod=worker["metadata"]["name"])
    status = scene.wait_until(lambda status: attempts(status) == ["OutOfMemory"], "a note of the kill")
    assert status["attempts"][0]["node"] == worker["spec"]["nodeName"]
    scene.ray_ends("FAILED", DRIVER_DIED)
    status = scene.wait_for("Queued", "BackingOff", "ran out of memory and was killed. Attempt 2 starts at")
    assert (attempts(status), status["retries"]) == (["OutOfMemory"], 1)


def test_an_evicted_worker_is_remembered_though_kuberay_deletes_it(scene: Scene) -> None:
    scene.training()
    worker = scene.running("worker")
    evicted = Gone("Evicted", "The node was low on resource: ephemeral-storage.")
    scene.kubelet.order(evicted, scene.namespace, pod=worker["metadata"]["name"])
    wait_until(lambda: is_gone(scene, worker), "KubeRay to delete the pod")
    scene.wait_until(lambda status: attempts(status) == ["LocalDiskFull"], "a note of the eviction")
    scene.ray_ends("FAILED", DRIVER_DIED)
    status = scene.wait_for("Failed", "LocalDiskFull", "A node's local disk is full")
    assert status["failure"]["node"] == worker["spec"]["nodeName"]


def test_a_lost_node_is_named(scene: Scene) -> None:
    """A taint as the node controller sets it when a kubelet is silent; the pods of that node never end."""
    node = f"lost-{scene.namespace}"
    create_node(scene.plane, node, ROOM_FOR_A_WORKER)
    try:
        scene.training({"spec.pods.worker.nodeSelector": {"kubernetes.io/hostname": node}})
        with scene.pods_linger():
            taint = {"key": "tests.cloister.dev/silent", "effect": "NoExecute"}
            scene.plane.api.patch(f"/api/v1/nodes/{node}", {"spec": {"taints": [taint]}})
            status = scene.wait_until(lambda status: attempts(status) == ["NodeLost"], "a note of the node")
            assert status["attempts"][0]["node"] == node
            scene.ray_ends("FAILED", DRIVER_DIED)
            scene.wait_for("Queued", "BackingOff", "Attempt 2 starts at")
    finally:
        delete_node(scene.plane, node)


def test_an_attempt_with_a_new_checkpoint_costs_no_retry(scene: Scene) -> None:
    scene.training({"spec.backoffLimit": 0})
    saved = CheckpointSaved(step=20, uri=f"s3://cloister-runs/{scene.namespace}/u/checkpoints/step-000020")
    scene.driver_says(saved)
    scene.driver_says(FailureSeen(reason=FailureReason.GPU_FAULT, message="Xid 79.", step=27, node="gpu-1"))
    last = scene.kubelet.log(scene.namespace, scene.submitter())
    scene.ray_ends("FAILED", f"Job entrypoint command failed, last available logs:\n{last}")
    scene.ray_says("RUNNING", attempt=2)
    status = scene.wait_until(lambda status: status["attempt"] == 2 and status["phase"] == "Training", "attempt 2")
    assert (attempts(status), status["retries"]) == (["GpuFault", None], 0)
    assert (status["checkpoint"]["step"], status["attempts"][0]["checkpointStep"]) == (20, 20)
    scene.ray_ends("FAILED", DRIVER_DIED, attempt=2)
    status = scene.wait_for("Failed", "Internal", "spec.backoffLimit is 0")
    assert status["message"].endswith(f"resumeFrom: {{uri: s3://cloister-runs/{scene.namespace}/u}}")
    assert scene.names("rayjobs") == ["contracts-2"]


def test_a_run_that_kuberay_lost_sight_of_after_its_end_is_published(scene: Scene) -> None:
    """The submitter ends, and the head knows nothing of the job any more: KubeRay calls that a failure."""
    scene.training()
    scene.driver_says(Done(step=120, staged_uri=f"s3://cloister-runs/{scene.namespace}/u/adapter"))
    scene.dashboard.forget(scene.namespace, "contracts-1")
    scene.step_ends("submitter", Ended(0))
    scene.wait_for("Publishing")
    (ray_job,) = scene.items("rayjobs")
    assert ray_job["status"]["jobDeploymentStatus"] == "Failed"
    scene.publish_succeeds()
    assert attempts(scene.wait_for("Complete")) == ["Complete"]


def test_a_run_that_kuberay_lost_sight_of_is_made_again_without_counting(scene: Scene) -> None:
    scene.training({"spec.backoffLimit": 0})
    scene.dashboard.forget(scene.namespace, "contracts-1")
    scene.kubelet.order(Ended(0), scene.namespace, pod=scene.submitter())
    status = scene.wait_for("Queued", "BackingOff", "that is no failure of the run. Attempt 2 starts at")
    assert (attempts(status), status.get("retries", 0)) == (["Internal"], 0)


def test_a_stopped_run_is_made_again(scene: Scene) -> None:
    scene.training()
    scene.ray_ends("STOPPED")
    scene.wait_for("Queued", "BackingOff", "was stopped from outside")


def test_a_run_that_somebody_deletes_is_made_again(scene: Scene) -> None:
    scene.training()
    scene.ray_says("RUNNING", attempt=2)
    scene.plane.api.delete(f"/apis/ray.io/v1/namespaces/{scene.namespace}/rayjobs/contracts-1")
    scene.wait_for("Queued", "BackingOff", "RayJob contracts-1 was deleted by somebody else")
    status = scene.wait_for("Training")
    assert attempts(status) == ["WorkersLost", None]
    assert scene.names("rayjobs") == ["contracts-2"]


def test_a_lost_head_is_replaced_inside_the_attempt(scene: Scene) -> None:
    scene.training()
    head = scene.running("head")
    with scene.pods_linger():
        scene.plane.api.delete(f"/api/v1/namespaces/{scene.namespace}/pods/{head['metadata']['name']}")
        scene.wait_until(lambda status: status["phase"] == "Queued", "a word of the lost head")
    wait_until(lambda: is_gone(scene, head), "the head's end")
    scene.running("head")
    status = scene.wait_for("Training")
    assert (status["attempt"], status["attempts"][0]["restarts"], attempts(status)) == (1, 1, [None])
    assert scene.names("rayjobs") == ["contracts-1"]
