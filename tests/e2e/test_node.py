"""The node of the end-to-end tests does what a node of a cluster does."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.control_plane.access import wait_until
from cluster.control_plane.api import ApiError
from cluster.control_plane.kueue import create_queue
from e2e.cluster.images import TOOLS, fill_with_tools, pack
from e2e.cluster.node import Node
from e2e.cluster.services import RESTRICTED
from e2e.cluster.site import ADDRESS, NODE
from e2e.pods import create_pod, create_server, execute, get_pod, reaches, ready_address, wait_for_phase


def test_the_node_is_ready_and_the_only_one(node: Node) -> None:
    lines = [line.split()[:2] for line in node.kubectl("get", "nodes", "--no-headers").splitlines()]
    assert lines == [[NODE, "Ready"]]
    addresses = node.api.get(f"/api/v1/nodes/{NODE}")["status"]["addresses"]
    assert {"type": "InternalIP", "address": ADDRESS} in addresses


def test_a_restricted_pod_runs_without_rights(node: Node, namespace: str) -> None:
    create_pod(node, namespace, "plain")
    ready_address(node, namespace, "plain")
    lines = execute(node, namespace, "plain", "cat", "/proc/self/status").splitlines()
    status = dict(line.split(":", 1) for line in lines)
    assert int(status["CapEff"].strip(), 16) == 0
    assert [status[name].strip() for name in ("NoNewPrivs", "Seccomp")] == ["1", "2"]
    assert status["Uid"].split()[0] == "65532"
    assert execute(node, namespace, "plain", "sh", "-c", "touch /no 2>&1 || true").count("Read-only file system") == 1


def test_what_is_not_restricted_is_refused(node: Node, namespace: str) -> None:
    with pytest.raises(ApiError, match="violates PodSecurity"):
        create_pod(node, namespace, "privileged", container={"securityContext": {"privileged": True}})


def test_a_service_is_found_by_name_and_reached(node: Node, namespace: str) -> None:
    create_server(node, namespace, "web", 8080, labels={"app": "web"})
    service = {
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    address = node.api.create(f"/api/v1/namespaces/{namespace}/services", service)["spec"]["clusterIP"]
    create_pod(node, namespace, "client")
    ready_address(node, namespace, "client")
    full = f"web.{namespace}.svc.cluster.local"
    assert address in execute(node, namespace, "client", "nslookup", full)
    wait_until(lambda: reaches(node, namespace, "client", "web", 80), "the Service by its short name")
    assert reaches(node, namespace, "client", full, 80)


def test_logs_tell_what_a_pod_said_and_how_it_ended(node: Node, namespace: str) -> None:
    create_pod(node, namespace, "speaker", ("sh", "-c", "echo one; echo two >&2; exit 3"))
    ended = wait_for_phase(node, namespace, "speaker", "Failed")
    assert ended["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 3
    assert sorted(node.kubectl("logs", "speaker", namespace=namespace).split()) == ["one", "two"]


def test_a_pod_above_its_memory_limit_is_oom_killed(node: Node, namespace: str) -> None:
    limits = {"resources": {"limits": {"memory": "64Mi"}, "requests": {"memory": "64Mi", "cpu": "10m"}}}
    create_pod(
        node, namespace, "greedy", ("dd", "if=/dev/zero", "of=/dev/null", "bs=512M", "count=1"), container=limits
    )
    ended = wait_for_phase(node, namespace, "greedy", "Failed")
    terminated = ended["status"]["containerStatuses"][0]["state"]["terminated"]
    assert [terminated["reason"], terminated["exitCode"]] == ["OOMKilled", 137]


def test_a_claim_gets_a_volume_that_outlives_its_pod_and_goes_with_the_claim(node: Node, namespace: str) -> None:
    claim = {
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    claims = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    node.api.create(claims, claim)
    create_pod(node, namespace, "writer", ("sh", "-c", "echo kept > /data/file"), claim="data")
    wait_for_phase(node, namespace, "writer", "Succeeded")
    create_pod(node, namespace, "reader", ("cat", "/data/file"), claim="data")
    wait_for_phase(node, namespace, "reader", "Succeeded")
    assert node.kubectl("logs", "reader", namespace=namespace) == "kept\n"
    bound = node.api.get(f"{claims}/data")
    assert bound["status"]["phase"] == "Bound"
    volume = bound["spec"]["volumeName"]
    for pod in ("writer", "reader"):
        node.api.delete(f"/api/v1/namespaces/{namespace}/pods/{pod}")
    node.api.delete(f"{claims}/data")
    wait_until(lambda: not node.api.exists(f"/api/v1/persistentvolumes/{volume}"), "the volume to go")
    wait_until(lambda: not (node.site.volumes / volume).exists(), "the volume's folder to go")


def test_an_image_from_an_archive_runs(node: Node, namespace: str, tmp_path: Path) -> None:
    name, root = f"localhost/cloister/{namespace}:1", tmp_path / "root"
    root.mkdir()
    fill_with_tools(root)
    (root / "word").write_text("packed\n")
    pack(root, name, tmp_path / "image.tar", {"Env": ["PATH=/bin"]})
    for _ in range(2):
        node.import_image(tmp_path / "image.tar")
    create_pod(node, namespace, "imported", ("cat", "/word"), container={"image": name})
    wait_for_phase(node, namespace, "imported", "Succeeded")
    assert node.kubectl("logs", "imported", namespace=namespace) == "packed\n"


def test_a_pod_outlives_a_restart_of_kubelet(node: Node, namespace: str) -> None:
    create_pod(node, namespace, "steady")
    ready_address(node, namespace, "steady")
    before = get_pod(node, namespace, "steady")["status"]["containerStatuses"][0]["containerID"]
    node.program("kubelet").kill()
    node.program("kubelet").start()
    create_pod(node, namespace, "later")
    ready_address(node, namespace, "later")
    status = get_pod(node, namespace, "steady")["status"]["containerStatuses"][0]
    assert [status["containerID"], status["restartCount"]] == [before, 0]


def test_kueue_admits_a_job_that_then_runs(node: Node, namespace: str) -> None:
    create_queue(node, namespace, {"cpu": 1, "memory": "1Gi"})
    container = {
        "name": "main", "image": TOOLS, "imagePullPolicy": "Never", "command": ["true"], "securityContext": RESTRICTED,
        "resources": {"requests": {"cpu": "100m", "memory": "16Mi"}},
    }  # fmt: skip
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    job = {
        "metadata": {"name": "queued", "labels": {"kueue.x-k8s.io/queue-name": "research"}},
        "spec": {"suspend": True, "template": template},
    }
    jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    node.api.create(jobs, job)
    wait_until(lambda: node.api.get(f"{jobs}/queued")["status"].get("succeeded") == 1, "the queued Job to succeed")
    workloads = node.api.get(f"/apis/kueue.x-k8s.io/v1beta1/namespaces/{namespace}/workloads")["items"]
    admitted = [each["type"] for each in workloads[0]["status"]["conditions"] if each["status"] == "True"]
    assert "Admitted" in admitted


def test_kuberay_works_from_a_restricted_namespace(node: Node, namespace: str) -> None:
    level = node.api.get("/api/v1/namespaces/kuberay-system")["metadata"]["labels"]
    assert level["pod-security.kubernetes.io/enforce"] == "restricted"
    container = {"name": "head", "image": TOOLS, "imagePullPolicy": "Never", "securityContext": RESTRICTED}
    group = {"rayStartParams": {}, "template": {"spec": {"containers": [container]}}}
    cluster = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": "small"},
        "spec": {"rayVersion": "2.60.0", "headGroupSpec": group},
    }
    node.api.create(f"/apis/ray.io/v1/namespaces/{namespace}/rayclusters", cluster)
    heads = f"/api/v1/namespaces/{namespace}/pods?labelSelector=ray.io/node-type=head"
    wait_until(lambda: node.api.get(heads)["items"], "KubeRay to make a head pod")
