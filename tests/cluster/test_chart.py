"""The chart on a real API server: every object is accepted, helm installs, upgrades, tests and uninstalls it.

Kinds of the Prometheus Operator are not served here: tests/unit/chart checks them by their golden files alone.
"""

from __future__ import annotations

import base64
import copy
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cloister_api.crd import CRD_NAME
from cluster.chart_release import Release
from cluster.control_plane.access import KubectlError, wait_until
from cluster.control_plane.plane import ControlPlane
from cluster.edges.pod_status import Running
from cluster.jobs import create_job, jobs_path
from cluster.operator_jobs import succeeded
from support.chart import HelmError, cases, objects, rendered
from support.child_process import Program
from support.operator_values import PREPARED
from support.seaweedfs import free_ports

pytest_plugins = ["cluster.chart_fixtures"]

CRD_PATH = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{CRD_NAME}"
NOT_SERVED = "monitoring.coreos.com/v1"
CLUSTER_WIDE = ("ClusterRole", "ClusterRoleBinding")
SETTINGS = "settings.storage.endpoint=http://s3.internal"
BASE = (SETTINGS, "crd.install=false")
Object = dict[str, Any]


def settings(*changes: str) -> tuple[str, str]:
    return "--set", ",".join([*BASE, *changes])


# what the API server says of what is rendered


@pytest.fixture(scope="module")
def namespaces(plane: ControlPlane) -> None:
    for name in ("cloister-system", "legal", "hr", "research"):
        level = {"pod-security.kubernetes.io/enforce": "restricted"}
        plane.api.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": level}})
        account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        wait_until(lambda account=account: plane.api.exists(account), f"the account of {name}")


by_case = pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)


@by_case
def test_the_api_server_takes_every_object(plane: ControlPlane, namespaces: None, crd: None, case: Path) -> None:
    """But pods: a server looks for their ServiceAccount, so that the next test gives them another one."""
    found = [each for each in objects(rendered(case)) if each["apiVersion"] != NOT_SERVED and each["kind"] != "Pod"]
    (plan,) = [json.loads(each["data"]["plan.json"]) for each in found if "plan.json" in each.get("data", {})]
    items = [*found, plan["inputs"], plan["job"]]
    for each in items:
        if each["kind"] not in CLUSTER_WIDE:
            each["metadata"].setdefault("namespace", "cloister-system")
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    said = plane.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", text=text)
    assert said.count("created (server dry run)") == len(items)


@by_case
def test_restricted_admits_every_pod(plane: ControlPlane, namespaces: None, case: Path) -> None:
    found = objects(rendered(case))
    plans = [json.loads(each["data"]["plan.json"]) for each in found if "plan.json" in each.get("data", {})]
    made = 0
    for each in [*found, *(plan["inputs"] for plan in plans)]:
        template = each if each["kind"] == "Pod" else each["spec"].get("template") if "spec" in each else None
        if template is None:
            continue
        pod = {"metadata": {"name": "probe", "labels": template["metadata"]["labels"]}, "spec": admitted(template)}
        plane.api.create("/api/v1/namespaces/cloister-system/pods?dryRun=All", pod)
        made += 1
    assert made >= 3


def admitted(template: Object) -> Object:
    """The pod's spec without what is not there yet: its ServiceAccount, the StatefulSet's claim."""
    spec = copy.deepcopy(template["spec"])
    spec["serviceAccountName"] = "default"
    spec["volumes"] = [*spec["volumes"], {"name": "data", "emptyDir": {}}]
    return spec


def test_restricted_refuses_a_pod_that_lacks_what_the_chart_gives(plane: ControlPlane, namespaces: None) -> None:
    with pytest.raises(KubectlError, match='violates PodSecurity "restricted'):
        plane.kubectl("run", "probe", "--image=x", "--dry-run=server", namespace="cloister-system")


# install, upgrade, uninstall


def test_a_release_from_install_to_uninstall(release: Release) -> None:
    api = release.plane.api
    if api.exists(CRD_PATH):
        api.delete(CRD_PATH)
        wait_until(lambda: not api.exists(CRD_PATH), "the CRD to go")
    with_store = ("--set", "store.enabled=true")
    with release.running("install", *with_store) as installing:
        said, seen = release.play_store_hooks()
        notes = installing.result(timeout=60)
    assert f"helm test cloister -n {release.namespace}" in notes
    keys = stored_keys(release)
    secret_words = [word for data in keys.values() for word in data.values()]
    assert len(secret_words) >= 5
    everything = said + notes + release.helm("get all") + release_text(release)
    assert not [word for word in secret_words if word in everything]

    job = create_job(release.plane, release.namespace)
    with release.running("upgrade", *with_store, "--set", "images.trainer.tag=0.2.0") as upgrading:
        release.play_store_hooks(seen)
        upgrading.result(timeout=60)
    assert stored_keys(release) == keys
    text = api.get(release.path("configmaps", "cloister-settings"))["data"]["settings.yaml"]
    assert "cloister/trainer:0.2.0" in text

    release.helm("uninstall", "--wait")
    assert api.get(jobs_path(release.namespace, job["metadata"]["name"]))["metadata"]["uid"] == job["metadata"]["uid"]
    assert stored_keys(release) == keys
    assert not api.exists(release.path("deployments", "cloister-operator", "/apis/apps/v1"))

    release.helm("install", "--set", f"{SETTINGS},crd.keep=false")  # the CRD that was kept is taken over
    release.helm("uninstall", "--wait")
    wait_until(lambda: not api.exists(CRD_PATH), "the CRD to go")


def stored_keys(release: Release) -> dict[str, dict[str, str]]:
    """What the hook wrote into Secrets, by their names."""
    names = ("cloister-store", "cloister-storage")
    found = {name: release.plane.api.get(release.path("secrets", name))["data"] for name in names}
    return {
        name: {key: base64.b64decode(value).decode() for key, value in data.items()} for name, data in found.items()
    }


def release_text(release: Release) -> str:
    """Everything that helm keeps of its releases."""
    texts = []
    for secret in release.plane.api.get(release.path("secrets"))["items"]:
        if secret["type"] == "helm.sh/release.v1":
            texts.append(gzip.decompress(base64.b64decode(base64.b64decode(secret["data"]["release"]))).decode())
    assert texts
    return "\n".join(texts)


def test_what_the_api_server_does_not_serve_is_asked_for_with_a_sentence(release: Release) -> None:
    """KubeRay's kinds are served here, Kueue's are not."""
    with pytest.raises(HelmError, match=r"Kueue is not in this cluster: there is no kueue\.x-k8s\.io/v1beta1 Workload"):
        release.helm("install", *settings("prerequisites.kueue=true"))


# the operator with what the chart gives it


def operator(release: Release, folder: Path, deployment: str) -> Program:
    """The process that the Deployment would start: its ServiceAccount, its environment, its settings; not started."""
    api = release.plane.api
    pod = api.get(release.path("deployments", deployment, "/apis/apps/v1"))["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    settings_file = folder / "settings.yaml"
    settings_file.write_text(api.get(release.path("configmaps", "cloister-settings"))["data"]["settings.yaml"])
    kubeconfig = release.plane.service_account_kubeconfig(release.namespace, pod["serviceAccountName"], folder)
    control, canary, metrics, health = free_ports(4)
    ports = [f"--control-port={control}", f"--canary-port={canary}"]
    ports += [f"--metrics-port={metrics}", f"--health-port={health}"]
    own = {each["name"]: each["value"] for each in container["env"]} | {"HOME": str(folder)}
    environment = {**release.plane.environment(), **own, "KUBECONFIG": str(kubeconfig)}
    command = [sys.executable, *container["command"][1:], "--settings", str(settings_file), *ports]
    return Program(deployment, command, folder, environment)


def children(release: Release, namespace: str) -> dict[str, str]:
    """Names and UIDs of what a namespace's jobs have."""
    groups = {
        "jobs": "/apis/batch/v1",
        "rayjobs": "/apis/ray.io/v1",
        "configmaps": "/api/v1",
        "networkpolicies": "/apis/networking.k8s.io/v1",
    }
    found = [
        each
        for plural, group in groups.items()
        for each in release.plane.api.get(f"{group}/namespaces/{namespace}/{plural}")["items"]
    ]
    return {
        f"{each['metadata']['name']}": each["metadata"]["uid"]
        for each in found
        if "cloister.dev/job" in each["metadata"].get("labels", {})
    }


def test_an_upgrade_mid_run_leaves_what_runs_and_a_new_job_has_the_new_image(
    release: Release, crd: None, tmp_path: Path
) -> None:
    """One job trains and one is prepared when the chart is upgraded; all that they get later has their own image."""
    api, namespace = release.plane.api, release.namespace
    jobs, rayjobs = release.path("jobs", group="/apis/batch/v1"), release.path("rayjobs", group="/apis/ray.io/v1")
    release.helm("install", *settings())
    process = operator(release, tmp_path, "cloister-operator")
    process.start()
    create_job(release.plane, namespace)
    release.kubelet.order(succeeded(PREPARED), namespace, role="prepare")
    wait_until(lambda: api.exists(f"{rayjobs}/contracts-1"), "the RayJob")
    release.kubelet.order(Running(), namespace, role="prepare")
    create_job(release.plane, namespace, named("early"))
    wait_until(lambda: api.exists(f"{jobs}/early-prepare"), "the step that prepares")
    before = children(release, namespace)
    training = api.get(f"{rayjobs}/contracts-1")

    release.helm("upgrade", *settings("images.trainer.tag=0.2.0"))
    process.stop()
    (tmp_path / "upgraded").mkdir()
    process = operator(release, tmp_path / "upgraded", "cloister-operator")
    process.start()
    create_job(release.plane, namespace, named("later"))
    later = wait_until(lambda: api.get(f"{jobs}/later-prepare"), "the later job")
    assert before.items() <= children(release, namespace).items()
    assert api.get(f"{rayjobs}/contracts-1")["metadata"]["generation"] == training["metadata"]["generation"]

    ended = {"jobStatus": "SUCCEEDED", "jobDeploymentStatus": "Complete"}
    api.patch(f"{rayjobs}/contracts-1/status", {"status": ended})
    publish = wait_until(lambda: api.get(f"{jobs}/contracts-publish"), "the step that publishes")
    release.kubelet.order(succeeded(PREPARED), namespace, role="prepare")
    started = wait_until(lambda: api.get(f"{rayjobs}/early-1"), "the RayJob of the job that was prepared")
    begun, new = (f"registry.internal/cloister/trainer:{tag}" for tag in ("0.1.0", "0.2.0"))
    assert images_of(training) == images_of(publish) == images_of(started) == {begun}
    assert images_of(later) == {new}
    for name, image in (("contracts", begun), ("early", begun), ("later", new)):
        assert api.get(jobs_path(namespace, name))["status"]["images"]["trainer"] == image
    process.stop()


def named(name: str) -> Object:
    """Changes that make another job of it."""
    return {"metadata.name": name, "spec.output.uri": f"s3://adapters/{name}"}


def images_of(workload: Any) -> set[str]:
    """Images of all containers anywhere in a Job or a RayJob."""
    if isinstance(workload, list):
        return {image for part in workload for image in images_of(part)}
    if not isinstance(workload, dict):
        return set()
    own = {workload["image"]} if "image" in workload else set()
    return own | images_of(list(workload.values()))


def test_an_operator_of_one_namespace_sees_it_and_no_other(release: Release, crd: None, tmp_path: Path) -> None:
    plane, other = release.plane, release.plane.create_namespace()
    release.helm("install", *settings(f"operator.namespaces={{{release.namespace}}}", "rbac.aggregate=false"))
    process = operator(release, tmp_path, f"cloister-operator-{release.namespace}")
    process.start()
    create_job(plane, other)
    create_job(plane, release.namespace)
    wait_until(lambda: "contracts-prepare" in children(release, release.namespace), "prepare")
    assert process.running
    assert children(release, other) == {}
    assert "status" not in plane.api.get(jobs_path(other, "contracts"))
    process.stop()
    plane.delete_namespace(other)
