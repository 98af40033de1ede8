"""NetworkPolicies: one denies everything to every pod of every job, one allows a job's own flows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cloister_api.job import FineTuneJobSpec
from cloister_api.spec_cluster import Egress
from cloister_operator.names import DENY_POLICY, DENY_SPEC, JOB_LABEL, MANAGED_BY_LABEL, MANAGER
from cloister_operator.observe.facts import Job
from cloister_operator.render.metadata import Rendered, metadata
from cloister_operator.settings import Peer, Settings

DASHBOARD_PORT = 8265
METRICS_PORT = 8080


def deny_policy(namespace: str) -> Rendered:
    """The namespace's policy. It has no owner, so that losing a job's own policy closes, not opens, its pods."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": DENY_POLICY, "namespace": namespace, "labels": {MANAGED_BY_LABEL: MANAGER}},
        "spec": DENY_SPEC,
    }


def allow_policy(job: Job, spec: FineTuneJobSpec, settings: Settings) -> Rendered:
    """The job's own policy: DNS, its own pods, the store, the operator's control port; KubeRay and Prometheus in."""
    network = settings.network
    own = {"podSelector": {"matchLabels": {JOB_LABEL: job.name}}}
    egress = [
        *_rules("to", network.dns, ("UDP", "TCP")),
        {"to": [own]},
        *_rules("to", settings.storage.peers),
        *_rules("to", [network.operator]),
    ]
    ingress: list[dict[str, Any]] = [
        {"from": [own]},
        {"from": [_peer(network.kuberay)], "ports": _ports([DASHBOARD_PORT])},
    ]
    if network.prometheus is not None:
        ingress.append({"from": [_peer(network.prometheus)], "ports": _ports([METRICS_PORT])})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(job, settings, job.name),
        "spec": {
            "podSelector": {"matchLabels": {JOB_LABEL: job.name}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": [{}] if spec.network.egress is Egress.OPEN else egress,
        },
    }


def _rules(direction: str, peers: Sequence[Peer], protocols: Sequence[str] = ("TCP",)) -> list[dict[str, Any]]:
    rules = []
    for peer in peers:
        ports = _ports(peer.ports, protocols)
        rules.append({direction: [_peer(peer)], **({"ports": ports} if ports else {})})
    return rules


def _ports(ports: Sequence[int], protocols: Sequence[str] = ("TCP",)) -> list[dict[str, Any]]:
    return [{"protocol": protocol, "port": port} for port in ports for protocol in protocols]


def _peer(peer: Peer) -> dict[str, Any]:
    if peer.cidr is not None:
        return {"ipBlock": {"cidr": peer.cidr}}
    selectors = {"namespaceSelector": peer.namespace_labels, "podSelector": peer.pod_labels}
    return {key: {"matchLabels": labels} if labels else {} for key, labels in selectors.items() if labels is not None}
