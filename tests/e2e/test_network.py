"""NetworkPolicies are enforced on the node from a pod's first packet, and every flow is counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from cluster.control_plane.access import wait_until
from e2e.cluster.commands import run
from e2e.cluster.node import Node
from e2e.cluster.policies import Direction
from e2e.cluster.refusals import Refusal
from e2e.cluster.site import ADDRESS, API_PORT, PODS
from e2e.pods import create_pod, create_server, dial, execute, reaches, ready_address, wait_for_phase

BOTH = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
OUTSIDE, OUTSIDE_GATEWAY = "10.201.0.2", "10.201.0.1"
"""A network of this test alone, beyond the node as pods see it."""


@dataclass(frozen=True)
class Scene:
    """A client and a server that listens on 8080 and 8081."""

    node: Node
    namespace: str
    server: str

    def reaches(self, port: int, *, pod: str = "client") -> bool:
        return reaches(self.node, self.namespace, pod, self.server, port)

    def apply(self, name: str, **spec: Any) -> None:
        path = f"/apis/networking.k8s.io/v1/namespaces/{self.namespace}/networkpolicies"
        self.node.api.create(path, {"metadata": {"name": name}, "spec": spec})
        self.node.policies.refresh()

    def opened(self, pod: str, direction: Direction, policy: str) -> int:
        """Connections that a policy's rules allowed a pod."""
        return sum(
            one.packets
            for one in self.node.policies.counts()
            if one.pod == f"{self.namespace}/{pod}" and one.direction == direction and one.allowed
            if one.allowed.rule.startswith(f"{self.namespace}/{policy} ")
        )

    def refused(self, pod: str, direction: Direction) -> int:
        """Packets that a pod's isolation dropped."""
        return sum(
            one.packets
            for one in self.node.policies.counts()
            if one.pod == f"{self.namespace}/{pod}" and one.direction == direction and one.allowed is None
        )

    def was_refused(self, target: str, port: int, *, pod: str = "client") -> bool:
        wanted = Refusal(f"{self.namespace}/{pod}", target, "TCP", port, would_leave=False)
        return wanted in self.node.policies.refusals()


@pytest.fixture
def scene(node: Node, namespace: str) -> Scene:
    server = create_server(node, namespace, "server", 8080, 8081, labels={"app": "server"})
    create_pod(node, namespace, "client", labels={"app": "client"})
    ready_address(node, namespace, "client")
    return Scene(node, namespace, server)


def test_without_a_policy_pods_reach_each_other(scene: Scene) -> None:
    assert [scene.reaches(port) for port in (8080, 8081, 8082)] == [True, True, False]
    assert scene.refused("server", "ingress") == 0


def test_an_allowed_port_passes_and_another_is_dropped_and_counted(scene: Scene) -> None:
    peer = {"podSelector": {"matchLabels": {"app": "client"}}}
    scene.apply(
        "web",
        podSelector={"matchLabels": {"app": "server"}},
        ingress=[{"from": [peer], "ports": [{"port": 8080}]}],
    )
    assert scene.reaches(8080)
    assert (scene.opened("server", "ingress", "web"), scene.refused("server", "ingress")) == (1, 0)
    assert not scene.reaches(8081)
    assert scene.refused("server", "ingress") > 0
    assert scene.was_refused(f"{scene.namespace}/server", 8081)
    create_pod(scene.node, scene.namespace, "stranger")
    ready_address(scene.node, scene.namespace, "stranger")
    assert not scene.reaches(8080, pod="stranger")
    assert scene.was_refused(f"{scene.namespace}/server", 8080, pod="stranger")


def test_default_deny_closes_both_directions_and_the_node_still_reaches_its_pods(scene: Scene) -> None:
    scene.apply("deny", **BOTH)
    assert not scene.reaches(8080)
    assert scene.refused("client", "egress") > 0
    assert scene.refused("server", "ingress") == 0, "the client's own end refuses first"
    assert not reaches(scene.node, scene.namespace, "client", ADDRESS, API_PORT)
    assert scene.was_refused(ADDRESS, API_PORT)
    assert "here" in execute(scene.node, scene.namespace, "client", "echo", "here")
    later = create_server(scene.node, scene.namespace, "later", 8080, labels={})  # Ready: kubelet's probe passes
    assert not reaches(scene.node, scene.namespace, "client", later, 8080)


def test_both_ends_must_allow(scene: Scene) -> None:
    scene.apply("deny", **BOTH)
    scene.apply("out", podSelector={"matchLabels": {"app": "client"}}, policyTypes=["Egress"], egress=[{}])
    assert not scene.reaches(8080)
    assert scene.refused("server", "ingress") > 0
    scene.apply("in", podSelector={"matchLabels": {"app": "server"}}, ingress=[{"ports": [{"port": 8080}]}])
    assert [scene.reaches(8080), scene.reaches(8081)] == [True, False]


def test_an_address_block_without_its_exception(scene: Scene) -> None:
    scene.apply("deny", **BOTH)
    open_end = {"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [{}]}
    scene.apply("in", **open_end)
    block = {"cidr": "10.244.0.0/16", "except": [f"{scene.server}/32"]}
    scene.apply("out", podSelector={}, policyTypes=["Egress"], egress=[{"to": [{"ipBlock": block}]}])
    second = create_server(scene.node, scene.namespace, "second", 8080, labels={"app": "server"})
    assert not scene.reaches(8080)
    assert reaches(scene.node, scene.namespace, "client", second, 8080)
    assert scene.opened("client", "egress", "out") > 0


def test_a_pod_is_isolated_from_its_first_packet(scene: Scene) -> None:
    scene.apply("deny", **BOTH)
    for number in range(3):
        create_pod(scene.node, scene.namespace, f"eager-{number}", ("sh", "-c", dial(scene.server, 8080)))
    for number in range(3):
        wait_for_phase(scene.node, scene.namespace, f"eager-{number}", "Failed")
        assert scene.refused(f"eager-{number}", "egress") > 0, "counted although the pod has ended"


def test_a_pod_that_gets_a_label_gets_its_rules(scene: Scene) -> None:
    peer = {"podSelector": {"matchLabels": {"may": "enter"}}}
    scene.apply("in", podSelector={"matchLabels": {"app": "server"}}, ingress=[{"from": [peer]}])
    assert not scene.reaches(8080)
    path = f"/api/v1/namespaces/{scene.namespace}/pods/client"
    scene.node.api.patch(path, {"metadata": {"labels": {"may": "enter"}}})
    wait_until(lambda: scene.reaches(8080), "the new label to open the way")


def test_a_network_that_enforces_nothing_can_be_had(scene: Scene) -> None:
    scene.apply("deny", **BOTH)
    with scene.node.policies.switched_off():
        assert scene.reaches(8080)
    assert not scene.reaches(8080)


def test_a_policy_that_cannot_be_translated_keeps_new_pods_from_starting(scene: Scene) -> None:
    path = f"/apis/networking.k8s.io/v1/namespaces/{scene.namespace}/networkpolicies"
    named = {"podSelector": {}, "ingress": [{"ports": [{"port": "http"}]}]}
    scene.node.api.create(path, {"metadata": {"name": "named"}, "spec": named})
    create_pod(scene.node, scene.namespace, "held")
    events = f"/api/v1/namespaces/{scene.namespace}/events"

    def said() -> bool:
        messages = [each["message"] for each in scene.node.api.get(events)["items"]]
        return any("named ingress 0 names the port 'http'" in message for message in messages)

    wait_until(said, "an Event with the reason")
    assert scene.node.policies.problem
    scene.node.api.delete(f"{path}/named")
    ready_address(scene.node, scene.namespace, "held")
    wait_until(lambda: scene.node.policies.problem is None, "the enforcer to go on")


@pytest.fixture
def outside() -> Iterator[str]:
    """An address that this machine forwards to, as it does to every other machine."""
    run("ip", "netns", "add", "cloister-outside")
    try:
        run("ip", "link", "add", "cloister-out", "type", "veth", "peer", "name", "eth0", "netns", "cloister-outside")
        run("ip", "address", "add", f"{OUTSIDE_GATEWAY}/30", "dev", "cloister-out")
        run("ip", "link", "set", "cloister-out", "up")
        inside = ("ip", "-netns", "cloister-outside")
        run(*inside, "address", "add", f"{OUTSIDE}/30", "dev", "eth0")
        run(*inside, "link", "set", "eth0", "up")
        run(*inside, "route", "add", "default", "via", OUTSIDE_GATEWAY)
        run("ip", "netns", "exec", "cloister-outside", "iptables", "-A", "INPUT", "-s", PODS, "-j", "DROP")
        yield OUTSIDE
    finally:
        run("ip", "netns", "delete", "cloister-outside")


def test_what_would_leave_the_machine_is_dropped_and_counted(scene: Scene, outside: str) -> None:
    before = scene.node.guarded_packets()
    with scene.node.policies.switched_off():
        assert not reaches(scene.node, scene.namespace, "client", outside, 80)
    assert scene.node.guarded_packets() > before
    kept_in = Refusal(f"{scene.namespace}/client", outside, "TCP", 80, would_leave=True)
    assert kept_in in scene.node.policies.refusals()
    arrived = run("ip", "netns", "exec", "cloister-outside", "iptables-save", "-c", "-t", "filter")
    assert f"[0:0] -A INPUT -s {PODS} -j DROP" in arrived
