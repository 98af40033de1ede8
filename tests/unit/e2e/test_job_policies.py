"""The policies that the operator makes, as the node of the end-to-end tests enforces them: no other flow passes."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from cloister_api.yaml_tree import read_documents
from e2e.cluster.policies import Isolation, Pod, isolations

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "operator" / "smallest" / "children.yaml"
NAME = "kubernetes.io/metadata.name"
SYSTEMS = ("legal", "sales", "kube-system", "storage", "cloister-system", "kuberay-system")
HEAD = Pod("legal", "head", "10.244.0.2", {"cloister.dev/job": "contracts"})
WORKER = Pod("legal", "worker", "10.244.0.3", {"cloister.dev/job": "contracts"})
OTHER_JOB = Pod("legal", "other", "10.244.0.4", {"cloister.dev/job": "other"})
DNS = Pod("kube-system", "dns", "10.244.0.5", {"k8s-app": "kube-dns"})
STORE = Pod("storage", "store", "10.244.0.6", {"app": "store"})
OPERATOR = Pod("cloister-system", "operator", "10.244.0.7", {"app.kubernetes.io/name": "cloister-operator"})
KUBERAY = Pod("kuberay-system", "kuberay", "10.244.0.8", {"app.kubernetes.io/name": "kuberay-operator"})
STRANGER = Pod("sales", "stranger", "10.244.0.9", {"cloister.dev/job": "contracts"})
PODS = (HEAD, WORKER, OTHER_JOB, DNS, STORE, OPERATOR, KUBERAY, STRANGER)
NODE = "10.200.0.1"

ALLOWED = [
    (WORKER, DNS, "UDP", 53), (WORKER, DNS, "TCP", 53), (WORKER, HEAD, "TCP", 6379), (HEAD, WORKER, "TCP", 45678),
    (WORKER, STORE, "TCP", 8333), (WORKER, OPERATOR, "TCP", 8444), (KUBERAY, HEAD, "TCP", 8265),
]  # fmt: skip
REFUSED = [
    (WORKER, NODE, "TCP", 6443), (WORKER, DNS, "TCP", 80), (WORKER, STORE, "TCP", 22), (WORKER, OPERATOR, "TCP", 8445),
    (OTHER_JOB, STORE, "TCP", 8333), (OTHER_JOB, HEAD, "TCP", 6379), (STRANGER, HEAD, "TCP", 6379),
    (KUBERAY, HEAD, "TCP", 6379), (OPERATOR, HEAD, "TCP", 8265), (NODE, HEAD, "TCP", 8265),
]  # fmt: skip

End = Pod | str


def test_exactly_the_declared_flows_pass() -> None:
    policies = [each.value for each in read_documents(GOLDEN.read_text()) if each.value["kind"] == "NetworkPolicy"]
    found = isolations(policies, PODS, {name: {NAME: name} for name in SYSTEMS})
    assert [flow for flow in ALLOWED if not passes(found, *flow)] == []
    assert [flow for flow in REFUSED if passes(found, *flow)] == []


def passes(found: list[Isolation], source: End, target: End, protocol: str, port: int) -> bool:
    """Whether both ends allow a connection."""
    ends = {"egress": (source, target), "ingress": (target, source)}
    return all(
        any(_covers(one.peer, _address(ends[each.direction][1]), one.protocol, one.ports, protocol, port)
            for one in each.allowed)
        for each in found
        if each.address == _address(ends[each.direction][0])
    )  # fmt: skip


def _address(end: End) -> str:
    return end if isinstance(end, str) else end.address


def _covers(
    peer: str, address: str, wanted: str | None, ports: tuple[int, int] | None, protocol: str, port: int
) -> bool:
    here = ipaddress.ip_address(address) in ipaddress.ip_network(peer)
    return here and wanted in (None, protocol) and (ports is None or ports[0] <= port <= ports[1])
