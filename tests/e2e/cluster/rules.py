"""Isolations as rules of iptables, whose counters survive every change: a chain is never rewritten, only replaced.

The chain of an isolation is named by its content. What pods may do leads through the chain of the sender (egress) and
that of the receiver (ingress): a rule that allows returns, the last one drops. Chains whose isolation is gone are read
once more before they are deleted, so that no packet goes uncounted.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from e2e.cluster.policies import Allowed, Direction, Isolation
from e2e.cluster.site import PODS

FORWARD, INPUT = "CLOISTER-FORWARD", "CLOISTER-INPUT"
"""What pods send to pods; what they send to this machine itself."""
POD_CHAIN = "CLOISTER-POD-"
LOG_PREFIX = "cloister-refused "
ANSWERS = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
LOG_LIMIT = "-m limit --limit 50/second --limit-burst 500"


@dataclass(frozen=True)
class Count:
    """How many connections began by one rule, or packets were refused (`allowed` is None), in one pod's direction."""

    pod: str
    direction: Direction
    allowed: Allowed | None
    packets: int


def chain_name(isolation: Isolation) -> str:
    """The chain of an isolation; another one for another content."""
    return POD_CHAIN + hashlib.sha256(repr(isolation).encode()).hexdigest()[:14]


def setup_script() -> str:
    """The two chains that all traffic of pods goes through, with no pod isolated yet."""
    return _script(
        f":{FORWARD} - [0:0]",
        f":{INPUT} - [0:0]",
        f"-I FORWARD -d {PODS} -j {FORWARD}",
        f"-I INPUT -s {PODS} -j {INPUT}",
        f"-A {FORWARD} -j ACCEPT",
    )


def change_script(isolations: Sequence[Isolation], existing: Iterable[str]) -> str:
    """For iptables-restore --noflush: makes what is missing, and leads all traffic through the wanted chains."""
    there = set(existing)
    lines = [f":{FORWARD} - [0:0]", f":{INPUT} - [0:0]"]
    missing = [each for each in isolations if chain_name(each) not in there]
    lines += [f":{chain_name(each)} - [0:0]" for each in missing]
    for each in missing:
        lines += _chain(each)
    lines += [f"-A {FORWARD} {ANSWERS}", f"-A {INPUT} {ANSWERS}"]
    for each in isolations:
        end = "-s" if each.direction == "egress" else "-d"
        lines.append(f"-A {FORWARD} {end} {each.address}/32 -j {chain_name(each)}")
        if each.direction == "egress":
            lines.append(f"-A {INPUT} -s {each.address}/32 -j {chain_name(each)}")
    lines.append(f"-A {FORWARD} -j ACCEPT")
    return _script(*lines)


def removal_script(chains: Iterable[str]) -> str:
    """For iptables-restore --noflush: delete chains that nothing leads through any more."""
    names = sorted(chains)
    return _script(*(f":{name} - [0:0]" for name in names), *(f"-X {name}" for name in names))


def pod_chains(saved: str) -> list[str]:
    """The chains of isolations in what iptables-save printed."""
    return re.findall(rf"^:({POD_CHAIN}\S+) ", saved, re.MULTILINE)


def counts(saved: str, isolations: Iterable[Isolation]) -> Iterator[Count]:
    """The counters of these isolations' chains in what `iptables-save -c` printed."""
    found: dict[str, list[int]] = {}
    for packets, chain in re.findall(rf"^\[(\d+):\d+\] -A ({POD_CHAIN}\S+) ", saved, re.MULTILINE):
        found.setdefault(chain, []).append(int(packets))
    for isolation in isolations:
        packets_of_rules = found.get(chain_name(isolation), [])
        if packets_of_rules:
            *allowed, _, refused = packets_of_rules  # the last but one is the rule that logs
            for rule, packets in zip(isolation.allowed, allowed, strict=True):
                yield Count(isolation.pod, isolation.direction, rule, packets)
            yield Count(isolation.pod, isolation.direction, None, refused)


def _chain(isolation: Isolation) -> list[str]:
    name = chain_name(isolation)
    rules = [_rule(each, isolation.direction) for each in isolation.allowed]
    ends = [f'{LOG_LIMIT} -j LOG --log-prefix "{LOG_PREFIX}"', f"{_comment(isolation.pod)} -j DROP"]
    return [f"-A {name} {rule}" for rule in (*rules, *ends)]


def _rule(allowed: Allowed, direction: Direction) -> str:
    words = [f"{'-d' if direction == 'egress' else '-s'} {allowed.peer}"]
    if allowed.protocol:
        words.append(f"-p {allowed.protocol.lower()}")
        if allowed.ports:
            words.append(f"-m {allowed.protocol.lower()} --dport {allowed.ports[0]}:{allowed.ports[1]}")
    return " ".join([*words, _comment(allowed.rule), "-j RETURN"])


def _comment(text: str) -> str:
    """For people who look at the rules; the kernel takes 255 characters."""
    return f'-m comment --comment "{text[:250]}"'


def _script(*lines: str) -> str:
    return "\n".join(["*filter", *lines, "COMMIT", ""])
