"""What the operator may do, as the API server judges it; and the operator in one namespace alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster.control_plane.api import Api, Object
from cluster.control_plane.plane import ControlPlane
from cluster.edges.dashboard import RayDashboard
from cluster.edges.kubelet import Kubelet
from cluster.jobs import create_job
from cluster.operator_jobs import SETTINGS, Scene
from cluster.operator_process import ACCOUNT, OperatorProcess, install_namespaced_role, install_role, operator
from cluster.operator_stories import assert_complete_at_the_first_attempt, goes_by_itself
from support.child_process import Program

AUTHORIZATION = "/apis/authorization.k8s.io/v1"
EVERYBODY = {"authorization.k8s.io", "authentication.k8s.io"}
"""Groups in which everybody may ask about himself."""
FORBIDDEN = [
    ("get", "", "secrets", ""),
    ("list", "", "secrets", ""),
    ("watch", "", "secrets", ""),
    ("create", "", "secrets", ""),
    ("create", "", "pods", ""),
    ("delete", "", "pods", ""),
    ("create", "", "pods", "exec"),
    ("create", "", "pods", "attach"),
    ("create", "", "pods", "portforward"),
    ("create", "", "serviceaccounts", "token"),
    ("delete", "", "configmaps", ""),
    ("update", "", "configmaps", ""),
    ("patch", "", "configmaps", ""),
    ("get", "", "nodes", ""),
    ("patch", "", "namespaces", ""),
    ("impersonate", "", "users", ""),
    ("impersonate", "", "serviceaccounts", ""),
    ("escalate", "rbac.authorization.k8s.io", "clusterroles", ""),
    ("bind", "rbac.authorization.k8s.io", "clusterroles", ""),
    ("create", "rbac.authorization.k8s.io", "rolebindings", ""),
    ("patch", "cloister.dev", "finetunejobs", ""),
    ("create", "cloister.dev", "finetunejobs", ""),
    ("patch", "batch", "jobs", ""),
    ("update", "ray.io", "rayjobs", ""),
    ("patch", "ray.io", "rayclusters", ""),
    ("patch", "kueue.x-k8s.io", "workloads", ""),
    ("create", "admissionregistration.k8s.io", "mutatingwebhookconfigurations", ""),
    ("update", "apiextensions.k8s.io", "customresourcedefinitions", ""),
    ("deletecollection", "batch", "jobs", ""),
]
"""Verb, group, resource and part."""
NEEDED = [
    ("patch", "cloister.dev", "finetunejobs", "status"),
    ("create", "ray.io", "rayjobs", ""),
    ("get", "", "pods", "log"),
    ("delete", "networking.k8s.io", "networkpolicies", ""),
]
MODES = {"in all namespaces": install_role, "in one namespace": install_namespaced_role}


@pytest.fixture(params=MODES.values(), ids=MODES.keys())
def account(
    request: pytest.FixtureRequest, control_plane: ControlPlane, namespace: str, tmp_path_factory: Any
) -> Iterator[Api]:
    """The API as the operator's ServiceAccount in `namespace`."""
    install: Callable[[ControlPlane, str], None] = request.param
    install(control_plane, namespace)
    folder = tmp_path_factory.mktemp("account")
    with Api(control_plane.service_account_kubeconfig(namespace, ACCOUNT, folder)) as api:
        yield api


def may(api: Api, namespace: str, verb: str, group: str, resource: str, part: str) -> bool:
    """`kubectl auth can-i`."""
    asked = {"namespace": namespace, "verb": verb, "group": group, "resource": resource, "subresource": part}
    review = {"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1"}
    answer = api.create(f"{AUTHORIZATION}/selfsubjectaccessreviews", review | {"spec": {"resourceAttributes": asked}})
    return bool(answer["status"]["allowed"])


def rules_of(api: Api, namespace: str) -> list[Object]:
    """`kubectl auth can-i --list`: what the account may do besides asking about itself."""
    review = {"kind": "SelfSubjectRulesReview", "apiVersion": "authorization.k8s.io/v1"}
    answer = api.create(f"{AUTHORIZATION}/selfsubjectrulesreviews", review | {"spec": {"namespace": namespace}})
    assert not answer["status"]["incomplete"]
    return [rule for rule in answer["status"]["resourceRules"] if not set(rule.get("apiGroups", [])) <= EVERYBODY]


def test_nothing_that_it_may_do_is_a_wildcard_or_a_way_to_more(account: Api, namespace: str) -> None:
    rules = rules_of(account, namespace)
    words = {word for rule in rules for field in ("verbs", "apiGroups", "resources") for word in rule.get(field, [])}
    assert {"cloister.dev", "rayjobs", "create"} <= words
    assert not any("*" in word for word in words)
    assert not words & {"secrets", "escalate", "bind", "impersonate", "deletecollection", "serviceaccounts/token"}


def test_it_may_do_what_it_needs_and_none_of_what_would_give_it_power(account: Api, namespace: str) -> None:
    assert [asked for asked in FORBIDDEN if may(account, namespace, *asked)] == []
    assert [asked for asked in NEEDED if not may(account, namespace, *asked)] == []


def test_in_one_namespace_it_has_no_rights_elsewhere(
    control_plane: ControlPlane, namespace: str, tmp_path_factory: Any
) -> None:
    install_namespaced_role(control_plane, namespace)
    folder = tmp_path_factory.mktemp("account")
    with Api(control_plane.service_account_kubeconfig(namespace, ACCOUNT, folder)) as api:
        assert rules_of(api, namespace)
        assert rules_of(api, "default") == []
        everywhere = ("list", "cloister.dev", "finetunejobs", "")
        assert may(api, namespace, *everywhere)
        assert not may(api, "", *everywhere)


@pytest.fixture
def lone_operator(
    control_plane: ControlPlane, kuberay: Program, gpu_nodes: tuple[str, ...], namespace: str, tmp_path_factory: Any
) -> Iterator[OperatorProcess]:
    """The operator for `namespace` alone, running."""
    folder = tmp_path_factory.mktemp("operator")
    program = operator(control_plane, namespace, folder, SETTINGS, namespaced=True)
    program.start()
    yield program
    program.stop()


def test_in_one_namespace_it_does_all_its_work_there_and_none_elsewhere(
    control_plane: ControlPlane,
    lone_operator: OperatorProcess,
    kubelet: Kubelet,
    dashboard: RayDashboard,
    namespace: str,
) -> None:
    elsewhere = control_plane.create_namespace()
    other = create_job(control_plane, elsewhere, {"spec.output.uri": f"s3://adapters/{elsewhere}/contracts"})
    scene = Scene(control_plane, lone_operator, kubelet, dashboard, namespace)
    goes_by_itself(scene)
    scene.wait_until(lambda status: status.get("phase") == "Complete", "the end", 90)
    assert_complete_at_the_first_attempt(scene)
    scene.delete()
    scene.wait_until_gone()
    untouched = Scene(control_plane, lone_operator, kubelet, dashboard, elsewhere)
    assert untouched.job["metadata"]["resourceVersion"] == other["metadata"]["resourceVersion"]
    assert untouched.names("jobs") == untouched.names("networkpolicies") == []
    control_plane.delete_namespace(elsewhere)
