"""Random policies mean the same to the node's translation and to cyclonus, which others wrote.

Without the operator NotIn: for Kubernetes it selects what lacks the label, for cyclonus it does not.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import random
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cluster.control_plane.binaries import program
from e2e.cluster.policies import Isolation, Pod, isolations

NAMESPACES = {"one": {"team": "a"}, "two": {"team": "b"}, "three": {}}
LABELS = ({"app": "web"}, {"app": "store", "tier": "back"}, {"tier": "front"})
PODS = tuple(
    Pod(namespace, f"p{number}", f"10.244.0.{2 + index}", labels)
    for index, (namespace, (number, labels)) in enumerate(itertools.product(NAMESPACES, enumerate(LABELS)))
)
NODE = Pod("", "", "10.200.0.1")
PORTS = (("TCP", 80), ("TCP", 81), ("UDP", 80))
FLOWS = [
    (source, target, *port)
    for source, target, port in itertools.product((*PODS, NODE), (*PODS, NODE), PORTS)
    if source != target
]


@pytest.mark.parametrize("seed", range(30))
def test_both_judge_every_flow_alike(seed: int, tmp_path: Path) -> None:
    policies = random_policies(random.Random(seed))
    found = isolations(policies, PODS, NAMESPACES)
    ours = [passes(found, *flow) for flow in FLOWS]
    theirs = cyclonus(policies, tmp_path)
    assert len(set(theirs)) == 2, "policies that allow all or nothing would prove little"
    assert [flow for flow, one, other in zip(FLOWS, ours, theirs, strict=True) if one != other] == []


def random_policies(chance: random.Random) -> list[dict[str, Any]]:
    """Three policies with up to two rules in each direction."""

    def selector() -> dict[str, Any]:
        key = chance.choice(("app", "tier"))
        values = [chance.choice(("web", "store", "front", "back"))]
        return chance.choice(
            (
                {},
                {"matchLabels": {key: values[0]}},
                {"matchExpressions": [{"key": key, "operator": "In", "values": values}]},
                {"matchExpressions": [{"key": key, "operator": chance.choice(("Exists", "DoesNotExist"))}]},
            )
        )

    def peer() -> dict[str, Any]:
        team = chance.choice(({}, {"matchLabels": {"team": "a"}}, {"matchExpressions": [
            {"key": "team", "operator": "Exists"}]}))  # fmt: skip
        block = {"cidr": chance.choice(("10.244.0.0/29", "10.200.0.0/16", "0.0.0.0/0"))}
        if block["cidr"] == "10.244.0.0/29":
            block["except"] = ["10.244.0.4/31"]
        return chance.choice(
            (
                {"podSelector": selector()},
                {"namespaceSelector": team},
                {"namespaceSelector": team, "podSelector": selector()},
                {"ipBlock": block},
            )
        )

    def rule(ends: str) -> dict[str, Any]:
        made: dict[str, Any] = {ends: [peer() for _ in range(chance.randint(1, 2))]} if chance.random() < 0.8 else {}
        ports = chance.choice(([], [{"protocol": "TCP", "port": 80}], [{"protocol": "UDP"}], [
            {"protocol": "TCP", "port": 79, "endPort": 80}, {"protocol": "UDP", "port": 80}]))  # fmt: skip
        return made | ({"ports": ports} if ports else {})

    made = []
    for number in range(3):
        types = chance.choice((["Ingress"], ["Egress"], ["Ingress", "Egress"]))
        spec = {"podSelector": selector(), "policyTypes": types}
        for direction, ends in (("ingress", "from"), ("egress", "to")):
            if direction.capitalize() in types:
                spec[direction] = [rule(ends) for _ in range(chance.randint(0, 2))]
        metadata = {"name": f"p{number}", "namespace": chance.choice(tuple(NAMESPACES))}
        typed = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}
        made.append({**typed, "metadata": metadata, "spec": spec})
    return made


def passes(found: list[Isolation], source: Pod, target: Pod, protocol: str, port: int) -> bool:
    """Whether the isolations at both ends let a connection through."""
    ends = {"egress": (source, target), "ingress": (target, source)}
    return all(
        any(
            ipaddress.ip_address(ends[each.direction][1].address) in ipaddress.ip_network(one.peer)
            and one.protocol in (None, protocol)
            and (one.ports is None or one.ports[0] <= port <= one.ports[1])
            for one in each.allowed
        )
        for each in found
        if each.address == ends[each.direction][0].address
    )


def cyclonus(policies: list[dict[str, Any]], folder: Path) -> list[bool]:
    """What cyclonus says of every flow."""
    (folder / "policies").mkdir()
    for policy in policies:
        (folder / "policies" / f"{policy['metadata']['name']}.yaml").write_text(json.dumps(policy))
    asked = [
        {"Source": _peer(source), "Destination": _peer(target), "ResolvedPort": port, "Protocol": protocol}
        for source, target, protocol, port in FLOWS
    ]
    (folder / "traffic.json").write_text(json.dumps(asked))
    command = [program("cyclonus"), "analyze", "--mode", "query-traffic", "--policy-path", folder / "policies",
               "--traffic-path", folder / "traffic.json"]  # fmt: skip
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    answers = re.findall(r"IS ALLOWED\?\s*\|\s*(TRUE|FALSE)", told)
    assert len(answers) == len(FLOWS), told[-2000:]
    return [answer == "TRUE" for answer in answers]


def _peer(pod: Pod) -> dict[str, Any]:
    if pod is NODE:
        return {"IP": pod.address}
    inner = {
        "Namespace": pod.namespace,
        "NamespaceLabels": NAMESPACES[pod.namespace],
        "PodLabels": dict(pod.labels),
    }
    return {"Internal": inner, "IP": pod.address}
