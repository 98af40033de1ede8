"""The policies of a job, judged by cyclonus: exactly the declared flows are allowed."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cloister_api.yaml_tree import read_documents
from cluster.control_plane.binaries import program

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "operator"
JOB = "cloister.dev/job"


@dataclass(frozen=True)
class Pod:
    """Somebody inside the cluster."""

    namespace: str
    labels: tuple[tuple[str, str], ...]

    def peer(self) -> dict[str, Any]:
        """As cyclonus reads it."""
        namespace = {"kubernetes.io/metadata.name": self.namespace}
        inner = {"Namespace": self.namespace, "NamespaceLabels": namespace, "PodLabels": dict(self.labels)}
        return {"Internal": inner, "IP": "10.244.0.7"}


@dataclass(frozen=True)
class Host:
    """Somebody outside."""

    ip: str

    def peer(self) -> dict[str, Any]:
        """As cyclonus reads it."""
        return {"IP": self.ip}


def pod(namespace: str, **labels: str) -> Pod:
    return Pod(namespace, tuple(labels.items()))


OWN, HEAD = (Pod("legal", ((JOB, "contracts"), ("cloister.dev/role", role))) for role in ("worker", "head"))
OPEN = Pod("legal", ((JOB, "open"),))
FORGED = Pod("legal", ((JOB, "another"),))
NEIGHBOUR = pod("legal", app="web")
NAMESAKE = Pod("sales", ((JOB, "contracts"),))
DNS = Pod("kube-system", (("k8s-app", "kube-dns"),))
STORE, FALSE_STORE = pod("storage", app="store"), pod("legal", app="store")
OPERATOR = Pod("cloister-system", (("app.kubernetes.io/name", "cloister-operator"),))
KUBERAY = Pod("kuberay-system", (("app.kubernetes.io/name", "kuberay-operator"),))
INTERNET, API_SERVER, METADATA = Host("198.51.100.1"), Host("10.96.0.1"), Host("169.254.169.254")

ALLOWED = [
    (OWN, DNS, 53, "UDP"),
    (OWN, DNS, 53, "TCP"),
    (OWN, HEAD, 6379, "TCP"),
    (HEAD, OWN, 45678, "TCP"),
    (OWN, STORE, 8333, "TCP"),
    (OWN, OPERATOR, 8444, "TCP"),
    (KUBERAY, HEAD, 8265, "TCP"),
]
DENIED = [
    (OWN, INTERNET, 443, "TCP"),
    (OWN, INTERNET, 53, "UDP"),
    (OWN, API_SERVER, 443, "TCP"),
    (OWN, METADATA, 80, "TCP"),
    (OWN, DNS, 80, "TCP"),
    (OWN, STORE, 22, "TCP"),
    (OWN, FALSE_STORE, 8333, "TCP"),
    (OWN, OPERATOR, 8445, "TCP"),
    (OWN, OPERATOR, 9090, "TCP"),
    (OWN, NEIGHBOUR, 80, "TCP"),
    (OWN, NAMESAKE, 6379, "TCP"),
    (NAMESAKE, HEAD, 6379, "TCP"),
    (NEIGHBOUR, HEAD, 8265, "TCP"),
    (INTERNET, HEAD, 8265, "TCP"),
    (KUBERAY, HEAD, 6379, "TCP"),
    (OPERATOR, HEAD, 8265, "TCP"),
    (FORGED, HEAD, 6379, "TCP"),
    (FORGED, STORE, 8333, "TCP"),
]
"""FORGED has a job's label but no job, so nothing is allowed to it: losing a job's own policy closes its pods."""

Flow = tuple[Pod | Host, Pod | Host, int, str]


@cache
def policies(case: str) -> tuple[dict[str, Any], ...]:
    """The NetworkPolicies that the operator makes for a golden job."""
    found = [document.value for document in read_documents((GOLDEN / case / "children.yaml").read_text())]
    return tuple(policy for policy in found if policy["kind"] == "NetworkPolicy")


def judge(case: str, flows: list[Flow], folder: Path) -> list[bool]:
    """Whether each flow is allowed, with the policies at both its ends."""
    (folder / "policies").mkdir()
    for number, policy in enumerate(policies(case)):
        (folder / "policies" / f"{number}.yaml").write_text(json.dumps(policy))
    asked = [
        {"Source": source.peer(), "Destination": target.peer(), "ResolvedPort": port, "Protocol": protocol}
        for source, target, port, protocol in flows
    ]
    traffic = folder / "traffic.json"
    traffic.write_text(json.dumps(asked))
    told = subprocess.run(
        [program("cyclonus"), "analyze", "--mode", "query-traffic", "--policy-path", folder / "policies",
         "--traffic-path", traffic],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    answers = re.findall(r"IS ALLOWED\?\s*\|\s*(TRUE|FALSE)", told)
    assert len(answers) == len(flows), told
    return [answer == "TRUE" for answer in answers]


def test_exactly_the_declared_flows_are_allowed(tmp_path: Path) -> None:
    found = dict(zip([*ALLOWED, *DENIED], judge("smallest", [*ALLOWED, *DENIED], tmp_path), strict=True))
    assert [flow for flow in ALLOWED if not found[flow]] == []
    assert [flow for flow in DENIED if found[flow]] == []


def test_open_egress_opens_the_way_out_and_no_way_in(tmp_path: Path) -> None:
    out: list[Flow] = [(OPEN, INTERNET, 443, "TCP"), (OPEN, NEIGHBOUR, 80, "TCP")]
    back: list[Flow] = [(INTERNET, OPEN, 8265, "TCP"), (NEIGHBOUR, OPEN, 8265, "TCP"), (FORGED, INTERNET, 443, "TCP")]
    assert judge("open-egress", [*out, *back], tmp_path) == [True, True, False, False, False]
