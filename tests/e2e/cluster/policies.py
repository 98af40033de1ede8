"""What NetworkPolicies mean: which flows each isolated pod may have. A pure function, in the words of the API's page.

A pod that no policy selects for a direction may do anything in that direction. A selected one may do what any rule of
any policy that selects it allows, and nothing else. Answers to an allowed connection are allowed, and so is the node
itself; both are the business of the rules (`e2e.cluster.rules`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Direction = Literal["ingress", "egress"]
DIRECTIONS: tuple[Direction, ...] = ("ingress", "egress")
ANYWHERE = "0.0.0.0/0"
PEERS: Mapping[Direction, str] = {"ingress": "from", "egress": "to"}
Object = dict[str, Any]


class UnsupportedPolicyError(ValueError):
    """A policy uses something that this translation does not know; the message names the policy and what it is."""


@dataclass(frozen=True)
class Pod:
    """A pod with an address of its own."""

    namespace: str
    name: str
    address: str
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def key(self) -> str:
        """Namespace and name."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class Allowed:
    """One kind of connection that a policy's rule allows."""

    rule: str
    """Whose it is: `namespace/policy egress 0`, counted from 0 as in the policy."""
    peer: str
    """The other end, an IPv4 network."""
    protocol: str | None = None
    """TCP, UDP or SCTP; None: any."""
    ports: tuple[int, int] | None = None
    """The first and last target port; None: any."""


@dataclass(frozen=True)
class Isolation:
    """What a pod may do in one direction; everything else is refused."""

    pod: str
    address: str
    direction: Direction
    allowed: tuple[Allowed, ...]


def isolations(
    policies: Sequence[Object], pods: Sequence[Pod], namespaces: Mapping[str, Mapping[str, str]]
) -> list[Isolation]:
    """The isolation of every pod that a policy selects, in the order of pods.

    Args:
        policies: NetworkPolicy objects.
        pods: All pods with an address of their own.
        namespaces: Labels of each namespace.

    Raises:
        UnsupportedPolicyError: a policy cannot be translated.
    """
    found = []
    for pod in pods:
        for direction in DIRECTIONS:
            selecting = [each for each in policies if _selects(each, pod) and direction in _types(each)]
            if selecting:
                allowed = [one for each in selecting for one in _allowed(each, direction, pods, namespaces)]
                found.append(Isolation(pod.key, pod.address, direction, tuple(dict.fromkeys(allowed))))
    return found


def _selects(policy: Object, pod: Pod) -> bool:
    inside: bool = policy["metadata"]["namespace"] == pod.namespace
    return inside and _matches(policy["spec"].get("podSelector", {}), pod.labels)


def _types(policy: Object) -> list[Direction]:
    """The directions that a policy isolates; without policyTypes, egress only if it has egress rules."""
    given = policy["spec"].get("policyTypes")
    if given:
        return [direction for direction in DIRECTIONS if direction.capitalize() in given]
    return ["ingress", "egress"] if "egress" in policy["spec"] else ["ingress"]


def _allowed(
    policy: Object, direction: Direction, pods: Sequence[Pod], namespaces: Mapping[str, Mapping[str, str]]
) -> Iterator[Allowed]:
    name = f"{policy['metadata']['namespace']}/{policy['metadata']['name']}"
    for number, rule in enumerate(policy["spec"].get(direction) or []):
        title = f"{name} {direction} {number}"
        ports = [_ports(each, title) for each in rule.get("ports") or [{"protocol": None}]]
        for peer in _addresses(rule.get(PEERS[direction]) or [], policy, pods, namespaces):
            yield from (Allowed(title, peer, protocol, numbers) for protocol, numbers in ports)


def _addresses(
    peers: Sequence[Object], policy: Object, pods: Sequence[Pod], namespaces: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Networks of a rule's peers; no peers at all are everyone."""
    if not peers:
        return [ANYWHERE]
    found: list[str] = []
    for peer in peers:
        if block := peer.get("ipBlock"):
            found += _without(block["cidr"], block.get("except") or [])
        else:
            found += [f"{pod.address}/32" for pod in pods if _is_peer(peer, pod, policy, namespaces)]
    return found


def _is_peer(peer: Object, pod: Pod, policy: Object, namespaces: Mapping[str, Mapping[str, str]]) -> bool:
    """A namespaceSelector names other namespaces; without one it is the policy's own."""
    if "namespaceSelector" in peer:
        there = _matches(peer["namespaceSelector"], namespaces.get(pod.namespace, {}))
    else:
        there = pod.namespace == policy["metadata"]["namespace"]
    return there and _matches(peer.get("podSelector", {}), pod.labels)


def _without(cidr: str, excepted: Sequence[str]) -> list[str]:
    """The IPv4 networks of a block that are in no exception; none of an IPv6 block, for pods have no such address."""
    block = ipaddress.ip_network(cidr)
    if isinstance(block, ipaddress.IPv6Network):
        return []
    left = [block]
    for hole in map(ipaddress.IPv4Network, excepted):
        left = [part for network in left for part in _apart(network, hole)]
    return [str(network) for network in sorted(left)]


def _apart(network: ipaddress.IPv4Network, hole: ipaddress.IPv4Network) -> list[ipaddress.IPv4Network]:
    if network.subnet_of(hole):
        return []
    return list(network.address_exclude(hole)) if hole.subnet_of(network) else [network]


def _ports(port: Object, title: str) -> tuple[str | None, tuple[int, int] | None]:
    protocol = port.get("protocol", "TCP")
    number = port.get("port")
    if number is None:
        return protocol, None
    if not isinstance(number, int):
        raise UnsupportedPolicyError(f"{title} names the port {number!r}: name its number, others are not translated.")
    return protocol, (number, port.get("endPort", number))


OPERATORS: Mapping[str, Callable[[str | None, Sequence[str]], bool]] = {
    "In": lambda value, wanted: value is not None and value in wanted,
    "NotIn": lambda value, wanted: value is None or value not in wanted,
    "Exists": lambda value, _: value is not None,
    "DoesNotExist": lambda value, _: value is None,
}


def _matches(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a label selector selects; an empty one selects everything."""
    equal = all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items())
    return equal and all(
        OPERATORS[each["operator"]](labels.get(each["key"]), each.get("values") or [])
        for each in selector.get("matchExpressions") or []
    )
