"""What NetworkPolicies mean, and the rules of iptables that say the same."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from e2e.cluster.enforcer import pods_with_addresses
from e2e.cluster.policies import Allowed, Isolation, Pod, UnsupportedPolicyError, isolations
from e2e.cluster.rules import chain_name, change_script, counts, pod_chains, removal_script

NAMESPACES = {"legal": {"team": "legal"}, "sales": {"team": "sales"}, "empty": {}}
WEB = Pod("legal", "web", "10.244.0.2", {"app": "web", "tier": "front"})
STORE = Pod("legal", "store", "10.244.0.3", {"app": "store"})
SALES_WEB = Pod("sales", "web", "10.244.0.4", {"app": "web"})
PODS = (WEB, STORE, SALES_WEB)


def policy(name: str = "p", *, selects: Mapping[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """A policy of the namespace legal."""
    content = {"podSelector": selects if selects is not None else {}, **spec}
    return {"metadata": {"namespace": "legal", "name": name}, "spec": content}


def app(name: str) -> dict[str, Any]:
    return {"matchLabels": {"app": name}}


def of(pod: Pod, direction: str, *policies: dict[str, Any]) -> Isolation | None:
    """The isolation of one pod in one direction; None when it may do anything."""
    found = [one for one in isolations(policies, PODS, NAMESPACES) if (one.pod, one.direction) == (pod.key, direction)]
    assert len(found) <= 1
    return found[0] if found else None


def peers(isolation: Isolation | None) -> set[str]:
    assert isolation
    return {one.peer.removesuffix("/32") for one in isolation.allowed}


def permits(isolation: Isolation | None, address: str, protocol: str, port: int) -> bool:
    """What the rules of an isolation say of one connection."""
    if isolation is None:
        return True
    return any(
        ipaddress.ip_address(address) in ipaddress.ip_network(one.peer)
        and one.protocol in (None, protocol)
        and (one.ports is None or one.ports[0] <= port <= one.ports[1])
        for one in isolation.allowed
    )


def test_a_pod_that_no_policy_selects_is_free() -> None:
    assert isolations([], PODS, NAMESPACES) == []
    assert of(SALES_WEB, "ingress", policy()) is None
    assert of(STORE, "ingress", policy(selects=app("web"))) is None


def test_default_deny_refuses_everything_in_the_directions_that_it_names() -> None:
    both = policy(policyTypes=["Ingress", "Egress"])
    assert [of(WEB, "ingress", both), of(WEB, "egress", both)] == [
        Isolation("legal/web", "10.244.0.2", "ingress", ()),
        Isolation("legal/web", "10.244.0.2", "egress", ()),
    ]
    only_in = policy(policyTypes=["Ingress"])
    assert of(WEB, "ingress", only_in)
    assert of(WEB, "egress", only_in) is None


def test_without_policy_types_egress_is_isolated_only_by_egress_rules() -> None:
    assert of(WEB, "egress", policy(ingress=[{}])) is None
    assert of(WEB, "ingress", policy(egress=[{}]))
    assert peers(of(WEB, "egress", policy(egress=[{}]))) == {"0.0.0.0/0"}


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ({"podSelector": {}}, {WEB.address, STORE.address}),
        ({"podSelector": app("web")}, {WEB.address}),
        ({"namespaceSelector": {}}, {WEB.address, STORE.address, SALES_WEB.address}),
        ({"namespaceSelector": {"matchLabels": {"team": "sales"}}}, {SALES_WEB.address}),
        ({"namespaceSelector": {}, "podSelector": app("web")}, {WEB.address, SALES_WEB.address}),
        ({"ipBlock": {"cidr": "10.200.0.1/32"}}, {"10.200.0.1"}),
        ({"ipBlock": {"cidr": "fd00::/8"}}, set()),
        ({"ipBlock": {"cidr": "10.9.0.0/30", "except": ["10.9.0.0/32"]}}, {"10.9.0.1", "10.9.0.2/31"}),
        ({"ipBlock": {"cidr": "10.9.0.0/30", "except": ["10.0.0.0/8"]}}, set()),
    ],
)
def test_who_a_peer_is(peer: dict[str, Any], expected: set[str]) -> None:
    assert peers(of(WEB, "ingress", policy(ingress=[{"from": [peer]}]))) == expected
    assert peers(of(WEB, "egress", policy(egress=[{"to": [peer]}]))) == expected


@pytest.mark.parametrize(
    ("expression", "selected"),
    [
        ({"key": "tier", "operator": "Exists"}, {WEB.address}),
        ({"key": "tier", "operator": "DoesNotExist"}, {STORE.address}),
        ({"key": "app", "operator": "In", "values": ["store", "x"]}, {STORE.address}),
        ({"key": "tier", "operator": "NotIn", "values": ["front"]}, {STORE.address}),
        ({"key": "tier", "operator": "In", "values": ["back"]}, set()),
    ],
)
def test_expressions_select(expression: dict[str, Any], selected: set[str]) -> None:
    found = of(WEB, "ingress", policy(ingress=[{"from": [{"podSelector": {"matchExpressions": [expression]}}]}]))
    assert peers(found) == selected


@pytest.mark.parametrize(
    ("ports", "allowed", "refused"),
    [
        ([{"port": 80}], [("TCP", 80)], [("TCP", 81), ("UDP", 80)]),
        ([{"port": 53, "protocol": "UDP"}], [("UDP", 53)], [("TCP", 53)]),
        ([{"port": 80, "endPort": 82}], [("TCP", 80), ("TCP", 82)], [("TCP", 83)]),
        ([{"protocol": "UDP"}], [("UDP", 1), ("UDP", 65535)], [("TCP", 1)]),
        ([{"port": 80}, {"port": 443}], [("TCP", 80), ("TCP", 443)], [("TCP", 8080)]),
        ([], [("TCP", 1), ("UDP", 65535), ("SCTP", 7)], []),
    ],
)
def test_ports(ports: list[dict[str, Any]], allowed: list[tuple[str, int]], refused: list[tuple[str, int]]) -> None:
    found = of(WEB, "egress", policy(egress=[{"ports": ports}]))
    assert all(permits(found, "10.244.0.9", *one) for one in allowed)
    assert not any(permits(found, "10.244.0.9", *one) for one in refused)


def test_peers_and_ports_of_one_rule_hold_together_and_rules_add_up() -> None:
    rules = [
        {"to": [{"podSelector": app("store")}], "ports": [{"port": 8333}]},
        {"to": [{"ipBlock": {"cidr": "10.200.0.1/32"}}], "ports": [{"port": 6443}]},
    ]
    found = of(WEB, "egress", policy(egress=rules[:1]), policy("q", egress=rules[1:]))
    asked = [(STORE.address, 8333), ("10.200.0.1", 6443), (STORE.address, 6443), ("10.200.0.1", 8333)]
    assert [permits(found, address, "TCP", port) for address, port in asked] == [True, True, False, False]
    assert found
    assert [one.rule for one in found.allowed] == ["legal/p egress 0", "legal/q egress 0"]


def test_a_named_port_is_refused_with_the_rule_that_has_it() -> None:
    with pytest.raises(UnsupportedPolicyError, match=r"legal/p ingress 1 names the port 'http'"):
        isolations([policy(ingress=[{}, {"ports": [{"port": "http"}]}])], PODS, NAMESPACES)


def test_which_pods_have_an_address_to_isolate() -> None:
    def shaped(name: str, address: str | None, phase: str = "Running", *, host: bool = False) -> dict[str, Any]:
        status = {"phase": phase} | ({"podIP": address} if address else {})
        return {
            "metadata": {"namespace": "legal", "name": name, "uid": name},
            "spec": {"hostNetwork": host},
            "status": status,
        }

    objects = [
        shaped("running", "10.244.0.2"),
        shaped("starting", None, "Pending"),
        shaped("waiting", None, "Pending"),
        shaped("restarted", "10.244.0.7"),
        shaped("stale", "10.244.0.3"),
        shaped("ended", "10.244.0.5", "Failed"),
        shaped("done", "10.244.0.6", "Succeeded"),
        shaped("host", "10.200.0.1", host=True),
    ]
    found = pods_with_addresses(objects, {"starting": "10.244.0.3", "restarted": "10.244.0.8"})
    assert {pod.name: pod.address for pod in found} == {
        "running": "10.244.0.2",
        "starting": "10.244.0.3",
        "restarted": "10.244.0.8",
    }


IN = Isolation("legal/web", "10.244.0.2", "ingress", (Allowed("legal/p ingress 0", "10.244.0.3/32", "TCP", (80, 80)),))
OUT = Isolation("legal/web", "10.244.0.2", "egress", ())


def test_a_change_makes_only_what_is_missing_so_that_counters_stay() -> None:
    lines = change_script([IN, OUT], existing=[chain_name(IN)]).splitlines()
    assert lines[0] == "*filter"
    assert lines[-1] == "COMMIT"
    assert f":{chain_name(OUT)} - [0:0]" in lines
    assert f":{chain_name(IN)} - [0:0]" not in lines
    assert not [line for line in lines if line.startswith(f"-A {chain_name(IN)} ")]


def test_answers_pass_first_then_both_ends_decide_and_what_is_left_is_free() -> None:
    lines = change_script([IN, OUT], existing=[]).splitlines()
    forwarded = [line.split(" ", 2)[2] for line in lines if line.startswith("-A CLOISTER-FORWARD ")]
    assert forwarded == [
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        f"-d 10.244.0.2/32 -j {chain_name(IN)}",
        f"-s 10.244.0.2/32 -j {chain_name(OUT)}",
        "-j ACCEPT",
    ]
    to_the_node = [line.split(" ", 2)[2] for line in lines if line.startswith("-A CLOISTER-INPUT ")]
    assert to_the_node[1:] == [f"-s 10.244.0.2/32 -j {chain_name(OUT)}"]


def test_a_chain_returns_what_is_allowed_and_ends_with_a_drop() -> None:
    lines = change_script([IN], existing=[]).splitlines()
    rules = [line.split(" ", 2)[2] for line in lines if line.startswith(f"-A {chain_name(IN)} ")]
    assert rules[0] == '-s 10.244.0.3/32 -p tcp -m tcp --dport 80:80 -m comment --comment "legal/p ingress 0" -j RETURN'
    assert " -j LOG " in rules[1]
    assert rules[2] == '-m comment --comment "legal/web" -j DROP'


def test_another_content_is_another_chain() -> None:
    others = [replace(IN, address="10.244.0.9"), replace(IN, direction="egress"), replace(IN, allowed=())]
    assert len({chain_name(one) for one in (IN, *others)}) == 4
    assert len(chain_name(IN)) <= 28  # what iptables takes


def test_counters_are_read_back_by_rule() -> None:
    name = chain_name(IN)
    saved = "\n".join(
        [
            "*filter",
            f":{name} - [0:0]",
            f"[3:180] -A CLOISTER-FORWARD -d 10.244.0.2/32 -j {name}",
            f'[2:120] -A {name} -s 10.244.0.3/32 -p tcp -m tcp --dport 80 -m comment --comment "x" -j RETURN',
            f'[1:60] -A {name} -m limit --limit 50/sec --limit-burst 500 -j LOG --log-prefix "y "',
            f"[1:60] -A {name} -m comment --comment legal/web -j DROP",
        ]
    )
    assert pod_chains(saved) == [name]
    assert [(one.allowed, one.packets) for one in counts(saved, [IN, OUT])] == [(IN.allowed[0], 2), (None, 1)]
    assert removal_script([name]) == f"*filter\n:{name} - [0:0]\n-X {name}\nCOMMIT\n"
