"""examples/ and the documentation's jobs on a real API server: accepted, queued, and let in only as it should be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

import pytest

from cluster.control_plane.access import NAMESPACE_LABEL, Cluster, KubectlError, wait_until
from cluster.control_plane.api import ApiError, Object
from cluster.control_plane.binaries import manifests
from cluster.control_plane.install import apply_server_side, wait_until_served
from cluster.control_plane.plane import ControlPlane
from cluster.jobs import jobs_path
from support.examples import EXAMPLES, Shown, example_settings, jobs, of_kind, shown_jobs
from support.operator_golden import journey
from support.operator_world import World
from support.pages import blocks, commands

KUEUE = "/apis/kueue.x-k8s.io/v1beta1"
POLICY = EXAMPLES / "09-admission-policy" / "policy.yaml"
HELM_TEST = "system:serviceaccount:cloister-system:cloister-readiness"
STRICT = "dryRun=All&fieldValidation=Strict"


@pytest.fixture(scope="module")
def research(control_plane: ControlPlane) -> Iterator[str]:
    """The namespace that the example of Kueue is for."""
    labels = {NAMESPACE_LABEL: "true"}
    control_plane.api.create("/api/v1/namespaces", {"metadata": {"name": "research", "labels": labels}})
    yield "research"
    for name in ("job.yaml", "queues.yaml"):
        control_plane.kubectl("delete", "-f", str(EXAMPLES / "06-kueue" / name), "--wait=false", "--ignore-not-found")
    control_plane.delete_namespace("research")


@pytest.mark.parametrize("shown", [*jobs(), *shown_jobs()], ids=str)
def test_every_job_that_is_shown_is_accepted(cluster: Cluster, namespace: str, shown: Shown) -> None:
    job = {**shown.object, "metadata": shown.object["metadata"] | {"namespace": namespace}}
    made = cluster.api.create(f"{jobs_path(namespace)}?{STRICT}", job)
    assert made["spec"]["lora"]["rank"]  # the defaults are there, so our schema has read it


@pytest.mark.parametrize("shown", of_kind("ConfigMap"), ids=str)
def test_every_config_map_is_accepted(cluster: Cluster, namespace: str, shown: Shown) -> None:
    config_map = {**shown.object, "metadata": shown.object["metadata"] | {"namespace": namespace}}
    assert cluster.api.create(f"/api/v1/namespaces/{namespace}/configmaps?{STRICT}", config_map)["data"]


@pytest.mark.parametrize("shown", of_kind("Deployment", "11-serving"), ids=str)
def test_the_deployment_is_accepted_where_pods_are_restricted(cluster: Cluster, namespace: str, shown: Shown) -> None:
    deployment = {**shown.object, "metadata": shown.object["metadata"] | {"namespace": namespace}}
    assert cluster.api.create(f"/apis/apps/v1/namespaces/{namespace}/deployments?{STRICT}", deployment)["spec"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    pod = {"metadata": {"name": "contracts", "labels": labels}, "spec": deployment["spec"]["template"]["spec"]}
    assert cluster.api.create(f"/api/v1/namespaces/{namespace}/pods?{STRICT}", pod)["spec"]


@pytest.mark.parametrize("shown", [*of_kind("Service"), *of_kind("ServiceAccount")], ids=str)
def test_what_stands_beside_a_server_is_accepted(cluster: Cluster, namespace: str, shown: Shown) -> None:
    path = f"/api/v1/namespaces/{namespace}/{shown.object['kind'].lower()}s?{STRICT}"
    assert cluster.api.create(path, {**shown.object, "metadata": {"name": "contracts"}})["metadata"]["name"]


@pytest.fixture(scope="module")
def kserve(cluster: Cluster) -> None:
    """KServe's CRD; nobody acts on its objects."""
    folder = manifests("kserve") / "config/crd/full/llmisvc"
    apply_server_side(cluster, folder / "serving.kserve.io_llminferenceservices.yaml")
    wait_until_served(cluster, "llminferenceservices.serving.kserve.io")


@pytest.mark.usefixtures("kserve")
@pytest.mark.parametrize("version", ["v1alpha1", "v1alpha2"])
@pytest.mark.parametrize("shown", of_kind("LLMInferenceService"), ids=str)
def test_what_kserve_is_told_is_in_its_schema(cluster: Cluster, namespace: str, shown: Shown, version: str) -> None:
    path = f"/apis/serving.kserve.io/{version}/namespaces/{namespace}/llminferenceservices?{STRICT}"
    told = {
        **shown.object,
        "apiVersion": f"serving.kserve.io/{version}",
        "metadata": shown.object["metadata"] | {"namespace": namespace},
    }
    assert cluster.api.create(path, told)["spec"]["model"]["lora"] == shown.object["spec"]["model"]["lora"]
    model = told["spec"]["model"]
    above = told["spec"] | {"model": model | {"lora": model["lora"] | {"maxRank": 32}}}
    assert cluster.api.create(path, told | {"spec": above})["spec"]["model"]["lora"]["maxRank"] == 32
    wrong = told["spec"] | {"model": model | {"lora": model["lora"] | {"maxLoraRank": 32}}}
    with pytest.raises(ApiError, match="unknown field"):
        cluster.api.create(path, told | {"spec": wrong})


def test_a_sweep_is_compared_as_its_page_shows(cluster: Cluster, namespace: str) -> None:
    """The page's command, on jobs that ended with the page's numbers, prints the page's table."""
    page = EXAMPLES / "10-sweep" / "README.md"
    (table,) = [each.text for each in blocks("text") if each.page == page]
    shown_rows = {row.split()[0]: row.split() for row in table.splitlines()[1:]}
    for shown in of_kind("FineTuneJob", "10-sweep"):
        name = shown.object["metadata"]["name"]
        job = {**shown.object, "metadata": shown.object["metadata"] | {"namespace": namespace}}
        cluster.api.create(jobs_path(namespace), job)
        _, phase, rate, base, loss, exact, rows = shown_rows.pop(name)
        assert float(rate) == job["spec"]["training"]["learningRate"]
        matches = {"rows": int(rows), "before": 0, "after": int(exact)}
        evaluation = {"baseLoss": float(base), "loss": float(loss), "exactMatch": matches}
        status = {"phase": phase, "evaluation": evaluation}
        cluster.api.patch(f"{jobs_path(namespace, name)}/status", {"status": status})
    assert not shown_rows
    (words,) = [
        words for each in blocks("sh") if each.page == page for words in commands(each) if "custom-columns" in words[-1]
    ]
    assert words[0:5] == ["kubectl", "get", "ftj", "-n", "research"]
    assert cluster.kubectl("get", "ftj", "-n", namespace, *words[5:]) == table


@pytest.fixture(scope="module")
def gitops(cluster: Cluster) -> None:
    """The CRDs of Argo CD and Flux; nobody acts on their objects."""
    apply_server_side(cluster, manifests("argo-cd") / "manifests/crds/application-crd.yaml")
    apply_server_side(cluster, manifests("flux") / "config/crd/bases")
    wait_until_served(cluster, "applications.argoproj.io", "kustomizations.kustomize.toolkit.fluxcd.io")


@pytest.mark.usefixtures("gitops")
@pytest.mark.parametrize("shown", [*of_kind("Application"), *of_kind("Kustomization")], ids=str)
def test_what_gitops_tools_are_told_is_in_their_schema(cluster: Cluster, namespace: str, shown: Shown) -> None:
    plural = f"{shown.object['kind'].lower()}s"
    path = f"/apis/{shown.object['apiVersion']}/namespaces/{namespace}/{plural}?{STRICT}"
    told = {**shown.object, "metadata": shown.object["metadata"] | {"namespace": namespace}}
    assert cluster.api.create(path, told)["spec"]
    with pytest.raises(ApiError, match="unknown field"):
        cluster.api.create(path, told | {"spec": told["spec"] | {"healthChekExprs": []}})


@pytest.mark.usefixtures("kueue")
def test_the_example_s_job_is_admitted_by_the_example_s_queue(control_plane: ControlPlane, research: str) -> None:
    """Both are applied as their page says; the RayJob is the one that the operator makes of the job."""
    for name in ("queues.yaml", "job.yaml"):
        control_plane.kubectl("apply", "-f", str(EXAMPLES / "06-kueue" / name))
    job = control_plane.api.get(jobs_path(research, "reviews"))
    (ray_job,) = [each for each in journey(World(admin=example_settings(), job=job)) if each["kind"] == "RayJob"]
    ray_job["metadata"]["ownerReferences"][0]["uid"] = job["metadata"]["uid"]
    control_plane.api.create(f"/apis/ray.io/v1/namespaces/{research}/rayjobs", ray_job)
    wait_until(partial(is_admitted, control_plane, research), "the admission of the example's run")
    (workload,) = workloads(control_plane, research)
    assert workload["spec"]["queueName"] == "gpus"
    assert (workload["spec"]["priorityClassName"], workload["spec"]["priority"]) == ("urgent", 1000)
    used = {}
    for each in workload["status"]["admission"]["podSetAssignments"]:
        assert set(each["flavors"].values()) == {"h100"}
        used[each["name"]] = each["resourceUsage"].get("nvidia.com/gpu")
    assert used["workers"] == "16"


def workloads(plane: ControlPlane, namespace: str) -> list[Object]:
    found: list[Object] = plane.api.get(f"{KUEUE}/namespaces/{namespace}/workloads")["items"]
    return found


def is_admitted(plane: ControlPlane, namespace: str) -> bool:
    conditions = [
        each for found in workloads(plane, namespace) for each in found.get("status", {}).get("conditions", [])
    ]
    return any(each["type"] == "Admitted" and each["status"] == "True" for each in conditions)


@pytest.fixture(scope="module")
def policy(cluster: Cluster) -> Iterator[None]:
    """The admission policy, in force; nothing of it is left for other tests."""
    namespace = cluster.create_namespace()
    cluster.kubectl("apply", "-f", str(POLICY))
    wait_until(lambda: refusal(cluster, namespace, "anybody", None), "the policy to be in force")
    yield
    cluster.kubectl("delete", "-f", str(POLICY))
    wait_until(lambda: not refusal(cluster, namespace, "anybody", None), "the policy to be gone")
    cluster.delete_namespace(namespace)


def refusal(cluster: Cluster, namespace: str, user: str, requested_by: str | None) -> str:
    """What the API server says when a user makes the example's job with this `requestedBy`; empty when it takes it."""
    (shown,) = of_kind("FineTuneJob", "09-admission-policy")
    provenance = {"ticket": "LEGAL-1182"} | ({"requestedBy": requested_by} if requested_by else {})
    spec = shown.object["spec"] | {"provenance": provenance}
    job = shown.object | {"metadata": {"name": "contracts", "namespace": namespace}, "spec": spec}
    who = [f"--as={user}", "--as-group=system:masters"]
    try:
        cluster.kubectl("create", "--dry-run=server", "-f", "-", *who, text=json.dumps(job))
    except KubectlError as error:
        return str(error)
    return ""


@pytest.mark.usefixtures("policy")
def test_who_states_nothing_is_told_what_to_write(cluster: Cluster, namespace: str) -> None:
    said = refusal(cluster, namespace, "ada@example.com", None)
    assert "spec.provenance.requestedBy is missing: set it to your own name in this cluster, ada@example.com." in said


@pytest.mark.usefixtures("policy")
def test_who_states_another_s_name_is_told_so(cluster: Cluster, namespace: str) -> None:
    said = refusal(cluster, namespace, "kubernetes-admin", "r.okafor@example.com")
    page = " ".join((EXAMPLES / "09-admission-policy" / "README.md").read_text().split())
    assert "is r.okafor@example.com, and you are kubernetes-admin: set it to your own name." in said
    assert said.partition('"STDIN": ')[2] in page  # the page shows what the server says


@pytest.mark.usefixtures("policy")
@pytest.mark.parametrize(
    ("user", "requested_by"),
    [
        ("r.okafor@example.com", "r.okafor@example.com"),
        ("system:serviceaccount:argocd:argocd-application-controller", "r.okafor@example.com"),
        ("system:serviceaccount:flux-system:kustomize-controller", None),
        (HELM_TEST, None),
    ],
)
def test_who_states_their_own_name_or_applies_for_others_is_let_in(
    cluster: Cluster, namespace: str, user: str, requested_by: str | None
) -> None:
    assert refusal(cluster, namespace, user, requested_by) == ""


@pytest.mark.usefixtures("policy")
def test_a_job_that_was_let_in_cannot_change_who_asked_for_it(cluster: Cluster, namespace: str) -> None:
    (shown,) = of_kind("FineTuneJob", "09-admission-policy")
    job = shown.object | {"metadata": {"name": "contracts", "namespace": namespace}}
    cluster.kubectl("create", "-f", "-", "--as=r.okafor@example.com", "--as-group=system:masters", text=json.dumps(job))
    changed = {"spec": {"provenance": {"requestedBy": "somebody.else@example.com"}}}
    with pytest.raises(ApiError) as refused:
        cluster.api.patch(jobs_path(namespace, "contracts"), changed)
    assert refused.value.code == 422
