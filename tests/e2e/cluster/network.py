"""The node's links and its guard: forwarded traffic of pods stays on this machine, whatever any policy allows."""

from __future__ import annotations

import contextlib
import json
import re

from cluster.control_plane.access import wait_until
from cluster.control_plane.binaries import MissingProgramError, program
from e2e.cluster.commands import run, succeeds
from e2e.cluster.site import ADDRESS, BRIDGE, PODS

GUARD = "CLOISTER-GUARD"
GUARD_PREFIX = "cloister-kept-in "
CHAINS = "CLOISTER-"
"""The start of every name of a chain of ours."""
KUBE_CHAINS = "KUBE-"
WAIT = ("-w", "10")
"""Other programs write rules too: wait for the lock that they all take."""


def create_bridge() -> None:
    """A bridge without ports carries the node's address; the kernel may have no dummy links."""
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "add", f"{ADDRESS}/32", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")


def create_guard() -> None:
    """Drop and count what pods would send out of this machine, and what would come in to them.

    In the table `mangle`, which comes before every rule of a policy or of kube-proxy.
    """
    script = [
        "*mangle",
        f":{GUARD} - [0:0]",
        f'-A {GUARD} -s {PODS} ! -d {PODS} -m limit --limit 50/second -j LOG --log-prefix "{GUARD_PREFIX}"',
        f"-A {GUARD} -s {PODS} ! -d {PODS} -j DROP",
        f"-A {GUARD} ! -s {PODS} -d {PODS} -j DROP",
        f"-I FORWARD -j {GUARD}",
        "COMMIT",
        "",
    ]
    run("iptables-restore", *WAIT, "--noflush", text="\n".join(script))


def guarded_packets() -> int:
    """How many packets of pods would have left this machine so far."""
    saved = run("iptables-save", "-c", "-t", "mangle")
    counted = re.findall(rf"^\[(\d+):\d+\] -A {GUARD} -s .* -j DROP$", saved, re.MULTILINE)
    return sum(map(int, counted))


def remove_links() -> None:
    """The bridge goes, and the pods' links have gone with their network namespaces."""
    if BRIDGE in link_names():
        run("ip", "link", "delete", BRIDGE)
    wait_until(lambda: not pod_links(), "the links of the pods to go", timeout_s=120.0)  # a busy machine takes its time


def remove_rules() -> None:
    """No chain of ours or of kube-proxy is left, in any table, and no rule that leads to one."""
    with contextlib.suppress(MissingProgramError):  # then none ran
        succeeds(program("kube-proxy"), "--cleanup")
    for table in ("filter", "nat", "mangle"):
        _remove_chains(table)


def chains() -> list[str]:
    """Chains of ours and of kube-proxy that are there, each as `table chain`."""
    found = []
    for table in ("filter", "nat", "mangle"):
        names = re.findall(r"^:(\S+) ", run("iptables-save", "-t", table), re.MULTILINE)
        found += [f"{table} {name}" for name in names if name.startswith((CHAINS, KUBE_CHAINS))]
    return found


def link_names() -> list[str]:
    """Every link of this machine's own network namespace."""
    return [link["ifname"] for link in json.loads(run("ip", "-json", "link"))]


def pod_links() -> list[str]:
    """Links over which pods are reached."""
    routes = json.loads(run("ip", "-json", "route"))
    return [route["dev"] for route in routes if route["dst"].startswith(PODS.rsplit(".", 2)[0] + ".")]


def _remove_chains(table: str) -> None:
    """First the rules that lead to the chains, then the chains, in one transaction."""
    saved = run("iptables-save", "-t", table).splitlines()
    ours = re.compile(rf"(?:{CHAINS}|{KUBE_CHAINS})")
    names = [match[1] for line in saved if (match := re.match(r":(\S+) ", line)) and ours.match(match[1])]
    if not names:
        return
    leads = re.compile(rf"-A ((?!{ours.pattern}).* -[jg] {ours.pattern}.*)")
    leading = [match[1] for line in saved if (match := leads.match(line))]
    script = [f"*{table}", *(f":{name} - [0:0]" for name in names), *(f"-D {rule}" for rule in leading)]
    script += [f"-X {name}" for name in names]
    run("iptables-restore", *WAIT, "--noflush", text="\n".join([*script, "COMMIT", ""]))
