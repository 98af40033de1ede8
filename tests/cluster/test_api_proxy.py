"""The proxy between a client and the API server does to calls and watches what it is told, and nothing else."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from cluster.control_plane.access import wait_until, write_kubeconfig
from cluster.control_plane.api import Api, ApiError
from cluster.control_plane.plane import ControlPlane
from cluster.edges.api_calls import Call, Fault, Lose, Precede, Refuse
from cluster.edges.api_proxy import ApiProxy


@pytest.fixture(scope="module")
def proxy(control_plane: ControlPlane) -> Iterator[ApiProxy]:
    with ApiProxy(control_plane) as proxy:
        yield proxy


@pytest.fixture
def api(control_plane: ControlPlane, proxy: ApiProxy, namespace: str, tmp_path: Path) -> Iterator[Api]:
    """The API server by way of the proxy, as a ServiceAccount: its token passes, a client's certificate would not."""
    binding = {
        "metadata": {"name": "edit"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}],
    }
    control_plane.api.create(f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings", binding)
    kubeconfig = control_plane.service_account_kubeconfig(namespace, "default", tmp_path)
    user = json.loads(kubeconfig.read_text())["users"][0]["user"]
    with Api(write_kubeconfig(tmp_path / "kubeconfig", proxy.entry, user)) as api:
        yield api


def config_map(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "data": {"key": "value"}}


def path(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps"


def test_without_a_rule_calls_pass_and_are_remembered(api: Api, proxy: ApiProxy, namespace: str) -> None:
    api.create(path(namespace), config_map("a"))
    api.patch(f"{path(namespace)}/a", {"data": {"key": "other"}})
    assert api.get(f"{path(namespace)}/a")["data"] == {"key": "other"}
    api.delete(f"{path(namespace)}/a")
    calls = [(call.verb, call.name) for call in proxy.calls if call.namespace == namespace]
    assert calls == [("create", ""), ("patch", "a"), ("get", "a"), ("delete", "a")]


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_call_that_is_refused_with_a_code_changes_nothing(
    api: Api, proxy: ApiProxy, control_plane: ControlPlane, namespace: str, code: int
) -> None:
    with proxy.ruled(lambda _: Refuse(code, retry_after_s=1)), pytest.raises(ApiError) as refusal:
        api.create(path(namespace), config_map("a"))
    assert refusal.value.code == code
    assert not control_plane.api.exists(f"{path(namespace)}/a")


@pytest.mark.parametrize(("fault", "arrives"), [(Refuse(), False), (Lose(), True)])
def test_a_call_without_an_answer_reached_the_server_or_not(
    api: Api, proxy: ApiProxy, control_plane: ControlPlane, namespace: str, fault: Fault, arrives: bool
) -> None:
    with proxy.ruled(lambda _: fault), pytest.raises(urllib3.exceptions.HTTPError):
        api.create(path(namespace), config_map("a"))
    assert control_plane.api.exists(f"{path(namespace)}/a") is arrives


def test_something_can_happen_before_a_call(
    api: Api, proxy: ApiProxy, control_plane: ControlPlane, namespace: str
) -> None:
    def rule(call: Call) -> Fault:
        return Precede(lambda: control_plane.api.create(path(namespace), config_map("a")))

    with proxy.ruled(rule), pytest.raises(ApiError) as conflict:
        api.create(path(namespace), config_map("a"))
    assert conflict.value.code == 409


def test_a_watch_tells_nothing_of_a_gap_and_expires_at_its_end(
    api: Api, proxy: ApiProxy, control_plane: ControlPlane, namespace: str
) -> None:
    version = api.get(path(namespace))["metadata"]["resourceVersion"]
    events: list[tuple[str, Any]] = []

    def follow() -> None:
        for event in api.stream(f"{path(namespace)}?watch=1&resourceVersion={version}"):
            found = event["object"]
            events.append((event["type"], found.get("code") or found["metadata"]["name"]))

    follower = threading.Thread(target=follow)
    follower.start()
    control_plane.api.create(path(namespace), config_map("before"))
    wait_until(lambda: ("ADDED", "before") in events, "an event")
    with proxy.gap_in_watches():
        kept_back = proxy.done["kept back"]
        control_plane.api.create(path(namespace), config_map("within"))
        wait_until(lambda: proxy.done["kept back"] > kept_back, "an event that is kept back")
    follower.join(10)
    assert not follower.is_alive()
    assert [event for event in events if event != ("ADDED", "kube-root-ca.crt")] == [
        ("ADDED", "before"),
        ("ERROR", 410),
    ]
