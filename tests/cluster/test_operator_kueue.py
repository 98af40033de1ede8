"""Jobs in queues: what the real Kueue holds back, admits and takes away again, and what a job says of it."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.control_plane.access import wait_until
from cluster.control_plane.kueue import create_queue
from cluster.operator_jobs import Scene
from cluster.ray_jobs import pod_spec

pytest_plugins = ["cluster.operator_fixtures"]
pytestmark = pytest.mark.usefixtures("kueue")

KUEUE = "/apis/kueue.x-k8s.io/v1beta1"
QUEUED = {"metadata.labels": {"kueue.x-k8s.io/queue-name": "research"}}
QUOTA: dict[str, int | str] = {"cpu": 8, "memory": "64Gi", "nvidia.com/gpu": 8}


def give(scene: Scene, quota: dict[str, int | str], name: str = "research") -> None:
    """The administrator changes the quota of a queue that `create_queue` made."""
    path = f"{KUEUE}/clusterqueues/{scene.namespace}-{name}"
    queue = scene.plane.api.get(path)
    ((flavor,),) = (group["flavors"] for group in queue["spec"]["resourceGroups"])
    flavor["resources"] = [{"name": resource, "nominalQuota": amount} for resource, amount in quota.items()]
    scene.plane.api.patch(path, {"spec": {"resourceGroups": queue["spec"]["resourceGroups"]}})


def activate(scene: Scene, active: bool) -> None:
    """The administrator evicts the run, or lets it come back."""
    (workload,) = scene.items("workloads")
    path = f"{KUEUE}/namespaces/{scene.namespace}/workloads/{workload['metadata']['name']}"
    scene.plane.api.patch(path, {"spec": {"active": active}})


def is_suspended(scene: Scene, name: str) -> bool:
    (found,) = [each for each in scene.items("rayjobs") if each["metadata"]["name"] == name]
    return bool(found["spec"].get("suspend"))


def takes_plain_jobs(scene: Scene) -> bool:
    """Whether Kueue holds back a Job that names no queue; none is made."""
    job = {"metadata": {"name": "probe"}, "spec": {"template": {"spec": pod_spec("main") | {"restartPolicy": "Never"}}}}
    path = f"/apis/batch/v1/namespaces/{scene.namespace}/jobs?dryRun=All"
    answered: dict[str, Any] = scene.plane.api.create(path, job)
    return bool(answered["spec"]["suspend"])


def test_a_job_waits_in_its_queue_and_trains_when_there_is_quota(scene: Scene) -> None:
    create_queue(scene.plane, scene.namespace, QUOTA | {"nvidia.com/gpu": 0})
    scene.prepare_succeeds()
    scene.ray_says("RUNNING")
    scene.apply(QUEUED)
    status = scene.wait_for("Queued", "Queued", "insufficient quota for nvidia.com/gpu")
    assert status["message"].startswith("Waiting for 1 nvidia.com/gpu in queue research since ")
    assert scene.conditions()["QuotaReserved"] == ("False", "Queued")
    assert is_suspended(scene, "contracts-1")
    assert scene.names("rayclusters") == []
    give(scene, QUOTA)
    status = scene.wait_for("Training")
    assert scene.conditions()["QuotaReserved"] == ("True", "Admitted")
    assert (status["attempt"], status["attempts"][0]["restarts"]) == (1, 0)


def test_an_evicted_job_comes_back_in_the_same_attempt(scene: Scene) -> None:
    create_queue(scene.plane, scene.namespace, QUOTA)
    scene.training(QUEUED)
    (before,) = scene.names("rayclusters")
    (run,) = scene.items("rayjobs")
    activate(scene, False)
    status = scene.wait_for("Queued", "Evicted", "the run goes on from its newest checkpoint")
    assert scene.conditions()["Running"] == ("False", "Evicted")
    wait_until(lambda: scene.names("rayclusters") == [], "the end of the evicted pods")
    activate(scene, True)
    status = scene.wait_for("Training")
    assert (status["attempt"], status["attempts"][0]["restarts"]) == (1, 1)
    assert status.get("retries", 0) == 0
    assert scene.conditions()["QuotaReserved"] == ("True", "Admitted")
    assert [each["metadata"]["uid"] for each in scene.items("rayjobs")] == [run["metadata"]["uid"]]
    assert scene.names("rayclusters") != [before]
    scene.ray_ends("SUCCEEDED")
    scene.publish_succeeds()
    scene.wait_for("Complete")


def test_a_job_that_is_suspended_gives_its_quota_to_the_next(scene: Scene) -> None:
    create_queue(scene.plane, scene.namespace, QUOTA | {"nvidia.com/gpu": 1})
    scene.training(QUEUED)
    other = Scene(scene.plane, scene.operator, scene.kubelet, scene.dashboard, scene.namespace, "other")
    other.ray_says("RUNNING")
    other.apply(QUEUED)
    other.wait_for("Queued", "Queued", "Waiting for 1 nvidia.com/gpu in queue research since ")
    scene.edit(suspend=True)
    scene.wait_for("Suspended", "Suspended")
    other.wait_for("Training")
    other.delete()
    wait_until(lambda: "other-1" not in scene.names("rayjobs"), "the end of the other run")
    scene.edit(suspend=False)
    scene.ray_says("RUNNING", attempt=2)
    assert scene.wait_for("Training")["attempt"] == 2


def test_where_plain_jobs_need_quota_prepare_waits_for_it(scene: Scene) -> None:
    create_queue(scene.plane, scene.namespace, {"cpu": 0, "memory": 0, "nvidia.com/gpu": 8}, name="default")
    wait_until(lambda: takes_plain_jobs(scene), "Kueue to know its queue")
    scene.apply()
    scene.wait_for("Preparing", "CpuQuota", "Job contracts-prepare waits for quota")
    assert scene.conditions()["QuotaReserved"] == ("False", "CpuQuota")
    assert scene.items("pods") == []
    give(scene, QUOTA, "default")
    scene.running("prepare")
    scene.wait_for("Preparing")
    assert scene.conditions()["QuotaReserved"] == ("True", "Admitted")


def test_a_deleted_job_leaves_its_queue(scene: Scene) -> None:
    create_queue(scene.plane, scene.namespace, QUOTA | {"nvidia.com/gpu": 0})
    scene.prepare_succeeds()
    scene.apply(QUEUED)
    scene.wait_for("Queued", "Queued", "Waiting for 1 nvidia.com/gpu")
    scene.delete()
    scene.wait_until_gone()
    wait_until(lambda: scene.items("workloads") == [], "the end of the Workload")
