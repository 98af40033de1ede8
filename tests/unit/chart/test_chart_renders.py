"""What the chart renders: golden files, settings that the operator takes, pods that `restricted` admits."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister_api.crd import render_crd
from cloister_api.loading import load_job
from cloister_api.yaml_tree import read_documents
from cloister_operator.names import JOB_LABEL
from support.chart import CHART, ROOT, Object, cases, named, objects, render, rendered, settings_of
from support.chart import REGISTRY as WITH_REGISTRY
from support.seaweedfs import weed_binary

CLUSTER_WIDE = {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding", "Namespace", "PriorityClass"}
WORKLOADS = ("Deployment", "StatefulSet", "Job")
HOOK = "helm.sh/hook"


def everything(case: Path) -> list[Object]:
    return objects(rendered(case))


def installed(found: list[Object]) -> list[Object]:
    """Without hooks."""
    return [each for each in found if HOOK not in each["metadata"].get("annotations", {})]


def pods(found: list[Object]) -> Iterator[tuple[str, Object]]:
    """The name and spec of every pod that the objects, and the Job of the readiness plan, make."""
    plans = [json.loads(each["data"]["plan.json"]) for each in found if "plan.json" in each.get("data", {})]
    for each in [*found, *(plan["inputs"] for plan in plans)]:
        if each["kind"] in WORKLOADS:
            yield each["metadata"]["name"], each["spec"]["template"]["spec"]
        elif each["kind"] == "Pod":
            yield each["metadata"]["name"], each["spec"]


by_case = pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)


def test_there_are_six_cases() -> None:
    assert len(cases()) == 6


@by_case
def test_a_case_renders_as_its_golden_file_says(case: Path) -> None:
    assert rendered(case) == (case / "rendered.yaml").read_text(), f"{case.name} is stale; run make golden"


@by_case
def test_the_operator_takes_the_rendered_settings(case: Path) -> None:
    settings = settings_of(everything(case))
    assert settings.images.trainer.startswith("registry.internal")
    assert settings.network.control_address == "cloister-control.cloister-system.svc:8444"
    assert settings.network.canary_address == "cloister-canary.cloister-system.svc:8445"


@by_case
def test_every_pod_is_restricted_and_has_limits(case: Path) -> None:
    made = dict(pods(everything(case)))
    assert "cloister-readiness-inputs" in made
    assert [name for name in made if re.fullmatch("cloister-readiness-[0-9a-f]{8}", name)]
    for name, pod in made.items():
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["runAsUser"] == 65532
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert container["resources"]["limits"]["memory"]
            assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]


@by_case
def test_a_token_is_mounted_only_where_the_api_is_called(case: Path) -> None:
    for name, pod in pods(everything(case)):
        calls = any("cloister_operator" in word for container in pod["containers"] for word in container["command"])
        assert pod["automountServiceAccountToken"] is calls, name


@by_case
def test_helm_test_finds_its_pods_log_by_the_name_of_each_hook(case: Path) -> None:
    documents = [each.value for each in read_documents(rendered(case)) if each.value]
    hooks = [each for each in documents if each["metadata"].get("annotations", {}).get(HOOK) == "test"]
    assert sorted(each["kind"] for each in hooks) == ["List", "Pod"]
    assert len({each["metadata"]["name"] for each in hooks}) == 1


@by_case
def test_the_readiness_job_is_one_that_the_settings_allow(case: Path) -> None:
    found = everything(case)
    plan = json.loads(named(found, "ConfigMap", "cloister-readiness")["data"]["plan.json"])
    job = load_job(json.dumps(plan["job"]), case.name)
    assert job.spec.training.max_steps == 20
    allowed = settings_of(found).allowed
    for uri in (job.spec.model.uri, job.spec.dataset.uri or "", job.spec.output.uri):
        assert any(uri.startswith(prefix.split("{")[0]) for prefix in allowed.uri_prefixes)
    assert job.spec.storage.secret_name in allowed.secret_names


@by_case
def test_services_and_policies_select_pods_that_are_there(case: Path) -> None:
    found = installed(everything(case))
    templates = [each["spec"]["template"]["metadata"]["labels"] for each in found if each["kind"] in WORKLOADS]
    selectors = [each["spec"]["selector"] for each in found if each["kind"] == "Service"]
    selectors += [each["spec"]["podSelector"]["matchLabels"] for each in found if each["kind"] == "NetworkPolicy"]
    assert len(selectors) >= 3
    for selector in selectors:
        assert any(selector.items() <= labels.items() for labels in templates), selector


def test_the_control_port_is_for_jobs_and_the_canary_for_everybody() -> None:
    """A canary that the operator's own policy closed would look refused where a job's policy is not enforced."""
    policy = named(objects(render("--set", WITH_REGISTRY)), "NetworkPolicy", "cloister-operator")["spec"]
    by_port = {rule["ports"][0]["port"]: rule for rule in policy["ingress"]}
    assert set(by_port) == {8444, 8445, 8080}
    assert by_port[8444]["from"] == [
        {"namespaceSelector": {}, "podSelector": {"matchExpressions": [{"key": JOB_LABEL, "operator": "Exists"}]}}
    ]
    assert "from" not in by_port[8445]


def test_jobs_reach_the_operator_and_the_store_by_the_settings_alone() -> None:
    found = objects(render("--set", WITH_REGISTRY, "--set", "store.enabled=true"))
    settings = settings_of(found)
    pod_labels = {
        component: named(found, kind, f"cloister-{component}")["spec"]["template"]["metadata"]["labels"]
        for component, kind in (("operator", "Deployment"), ("store", "StatefulSet"))
    }
    (store,) = settings.storage.peers
    for peer, component in ((settings.network.operator, "operator"), (store, "store")):
        assert peer.namespace_labels == {"kubernetes.io/metadata.name": "cloister-system"}
        assert (peer.pod_labels or {}).items() <= pod_labels[component].items()
    (container,) = named(found, "StatefulSet", "cloister-store")["spec"]["template"]["spec"]["containers"]
    assert store.ports == [port["containerPort"] for port in container["ports"] if port["name"] == "s3"]
    assert settings.storage.endpoint == "http://cloister-store.cloister-system.svc:8333"


@pytest.mark.parametrize("written", [["adapters/legal/*"], ["adapters/legal/*", "cloister-runs/readiness/*"]])
def test_a_tenant_whose_namespace_runs_helm_test_may_write_its_model(written: list[str]) -> None:
    tenants = json.dumps([{"namespace": name, "write": written} for name in ("legal", "hr")])
    changes = f"{WITH_REGISTRY},store.enabled=true,readiness.namespace=legal"
    found = objects(render("--set", changes, "--set-json", f"store.tenants={tenants}"))
    pod = named(found, "Job", "cloister-store-credentials")["spec"]["template"]["spec"]
    (argument,) = [word for word in pod["containers"][0]["command"] if word.startswith("--tenants=")]
    may_write = {each["namespace"]: each["write"] for each in json.loads(argument.partition("=")[2])}
    own = ["adapters/legal/*", "cloister-runs/readiness/*", "cloister-runs/legal/*"]
    assert may_write == {"legal": own, "hr": written}


def test_helm_test_in_a_namespace_may_write_where_its_runs_lie() -> None:
    """The model, the rows and the adapter are one place, the run folder is another."""
    tenant = json.dumps([{"namespace": "legal", "write": ["adapters/legal/*"]}])
    changes = f"{WITH_REGISTRY},store.enabled=true,settings.storage.runUri=s3://adapters/runs/{{namespace}}/"
    for namespace in ("legal", "research"):
        found = objects(
            render("--set", f"{changes},readiness.namespace={namespace}", "--set-json", f"store.tenants={tenant}")
        )
        pod = named(found, "Job", "cloister-store-credentials")["spec"]["template"]["spec"]
        (argument,) = [word for word in pod["containers"][0]["command"] if word.startswith("--tenants=")]
        (write,) = [each["write"] for each in json.loads(argument.partition("=")[2]) if each["namespace"] == namespace]
        assert write[-2:] == ["cloister-runs/readiness/*", f"adapters/runs/{namespace}/*"]


def test_helm_test_runs_what_jobs_run() -> None:
    changes = f"{WITH_REGISTRY},settings.images.trainer=elsewhere/trainer:2,settings.network.kuberay.podLabels.app=ray"
    found = objects(render("--set", f"{changes},settings.storage.endpoint=http://[fd00::1]:8333"))
    plan = json.loads(named(found, "ConfigMap", "cloister-readiness")["data"]["plan.json"])
    (container,) = plan["inputs"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == settings_of(found).images.trainer == "elsewhere/trainer:2"
    assert plan["expected"]["kuberayLabels"] == {"app": "ray"}
    assert plan["hostNames"][-1] == "fd00::1"


def test_what_the_administrator_says_wins_over_what_the_chart_knows() -> None:
    changes = ["settings.network.controlAddress=elsewhere:1", "settings.limits.workers=4"]
    settings = settings_of(objects(render("--set", ",".join([WITH_REGISTRY, *changes]))))
    assert settings.network.control_address == "elsewhere:1"
    assert settings.network.canary_address == "cloister-canary.cloister-system.svc:8445"
    assert settings.limits.workers == 4


@pytest.mark.parametrize("name", ["operator", "prometheus"])
def test_a_peer_of_the_settings_replaces_the_charts_whole(name: str) -> None:
    peer = {"cidr": "10.30.0.0/24", "ports": [18444]}
    changes = ["--set", f"{WITH_REGISTRY},monitoring.scrape=Annotations"]
    found = objects(render(*changes, "--set-json", f"settings.network.{name}={json.dumps(peer)}"))
    assert settings_of(found).network.to_api()[name] == peer


def test_the_rules_are_those_of_the_operator() -> None:
    (role,) = read_documents((ROOT / "operator/manifests/cluster-role.yaml").read_text())
    wide = named(objects(render("--set", WITH_REGISTRY)), "ClusterRole", "cloister-operator")
    assert wide["rules"] == role.value["rules"]
    (case,) = [case for case in cases() if case.name == "namespaced"]
    roles = [each for each in installed(everything(case)) if each["kind"] == "Role"]
    assert {each["metadata"]["namespace"] for each in roles} == {"legal", "hr"}
    for each in roles:
        assert each["rules"] == [rule for rule in role.value["rules"] if rule["apiGroups"] != ["apiextensions.k8s.io"]]


def test_namespaced_nothing_is_cluster_wide_and_each_operator_sees_one_namespace() -> None:
    (case,) = [case for case in cases() if case.name == "namespaced"]
    found = installed(everything(case))
    assert not CLUSTER_WIDE & {each["kind"] for each in found}
    for namespace in ("legal", "hr"):
        pod = named(found, "Deployment", f"cloister-operator-{namespace}")["spec"]["template"]["spec"]
        assert {"name": "CLOISTER_NAMESPACE", "value": namespace} in pod["containers"][0]["env"]
        (binding,) = [
            each for each in found if each["kind"] == "RoleBinding" if each["metadata"]["namespace"] == namespace
        ]
        assert binding["subjects"][0]["name"] == pod["serviceAccountName"]
    selectors = [each["spec"]["selector"]["matchLabels"] for each in found if each["kind"] == "Deployment"]
    assert selectors[0] != selectors[1]


def test_the_crd_is_that_of_the_models_and_is_kept_unless_told_otherwise() -> None:
    def crd(*arguments: str) -> list[Object]:
        found = objects(render("--set", WITH_REGISTRY, *arguments))
        return [each for each in found if each["kind"] == "CustomResourceDefinition"]

    (kept,) = crd()
    assert kept["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert kept == render_crd()
    assert crd("--set", "crd.keep=false") == [render_crd()]
    assert crd("--set", "crd.install=false") == []


def test_a_changed_setting_restarts_the_operator_and_nothing_else() -> None:
    def templates(*arguments: str) -> dict[str, Any]:
        found = installed(objects(render("--set", f"{WITH_REGISTRY},store.enabled=true", *arguments)))
        return {each["metadata"]["name"]: each["spec"]["template"] for each in found if each["kind"] in WORKLOADS}

    before, after = templates(), templates("--set", "images.trainer.tag=0.2.0")
    assert {name for name in before if before[name] != after[name]} == {"cloister-operator"}
    assert before == templates()


def test_nothing_that_helm_installs_belongs_to_a_job() -> None:
    """Upgrades change what is rendered here, so running jobs are none of it."""
    for case in cases():
        for each in installed(everything(case)):
            assert JOB_LABEL not in json.dumps(each["metadata"])
            assert each["kind"] not in {"FineTuneJob", "RayJob", "Job", "Pod"}


def test_a_digest_wins_over_a_tag_and_a_registry_of_ones_own_over_the_common_one() -> None:
    digest = f"sha256:{'a' * 64}"
    changes = (
        f"{WITH_REGISTRY},images.trainer.tag=v1,images.trainer.digest={digest},images.operator.registry=other:5000"
    )
    found = objects(render("--set", changes.replace("registry.internal", "registry.internal/mirror/")))
    assert settings_of(found).images.trainer == f"registry.internal/mirror/cloister/trainer@{digest}"
    (container,) = named(found, "Deployment", "cloister-operator")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "other:5000/cloister/operator:0.1.0"


def test_weed_knows_every_flag_of_the_store() -> None:
    found = objects(render("--set", f"{WITH_REGISTRY},store.enabled=true"))
    (container,) = named(found, "StatefulSet", "cloister-store")["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["weed"]
    logging, server, *flags = container["args"]
    assert (logging, server) == ("-logtostderr=true", "server")
    said = subprocess.run([weed_binary(), "server", "-h"], capture_output=True, text=True, check=False)
    known = set(re.findall(r"^  (-[\w.]+)", said.stdout + said.stderr, re.MULTILINE))
    assert {flag.partition("=")[0] for flag in flags} <= known


def test_the_chart_carries_no_link_and_no_foreign_file() -> None:
    files = [path for path in CHART.rglob("*") if path.is_file()]
    assert not [path for path in CHART.rglob("*") if path.is_symlink()]
    assert {path.suffix for path in files} <= {".yaml", ".json", ".tpl", ".txt", ""}
