"""The enforcer of NetworkPolicies: what pods and policies the cluster has becomes rules, before a pod starts and after
every change."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import urllib3

from cluster.control_plane.access import Cluster
from cluster.control_plane.api import ApiError, Object
from e2e.cluster.commands import CommandError, run
from e2e.cluster.network import WAIT
from e2e.cluster.policies import Isolation, Pod, UnsupportedPolicyError, isolations
from e2e.cluster.refusals import Refusal, RefusalLog
from e2e.cluster.rules import Count, chain_name, change_script, counts, removal_script, setup_script

POLL_S = 0.4
ENDED = ("Succeeded", "Failed")


def pods_with_addresses(objects: Sequence[Object], told: Mapping[str, str]) -> list[Pod]:
    """Pods with an address of their own that have not ended. What CNI told, by UID, comes before what a status says:
    a status may have no address yet, or still the one of an earlier sandbox."""
    taken = set(told.values())
    pods = []
    for each in objects:
        metadata, status = each["metadata"], each["status"]
        said = status.get("podIP")
        address = told.get(metadata["uid"]) or (said if said not in taken else None)
        if address and not each["spec"].get("hostNetwork") and status.get("phase") not in ENDED:
            pods.append(Pod(metadata["namespace"], metadata["name"], address, metadata.get("labels", {})))
    return sorted(pods, key=lambda pod: pod.key)


class PolicyEnforcer:
    """Two threads: one answers the CNI plugin when a pod gets its address, one looks for changes."""

    def __init__(self, cluster: Cluster, socket_path: Path) -> None:
        self._cluster = cluster
        self._socket_path = socket_path
        self._lock = threading.Lock()
        self._enabled = True
        self._told: dict[str, str] = {}
        """Addresses by the UID of their pods, from CNI: a pod's status has its address only later."""
        self._live: dict[str, Isolation] = {}
        self._earlier: list[Count] = []
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=each, name=each.__name__, daemon=True) for each in (self._serve, self._watch)
        ]
        self._server = socket.socket(socket.AF_UNIX)
        self._refusals = RefusalLog()
        self.problem: str | None = None
        """Why the rules are not those of the cluster's policies; None when they are."""

    def start(self) -> None:
        """Make the chains and begin; pods can start from now on."""
        run("iptables-restore", *WAIT, "--noflush", text=setup_script())
        self._socket_path.unlink(missing_ok=True)
        self._server.bind(str(self._socket_path))
        self._server.listen()
        self._server.settimeout(POLL_S)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads; the rules stay. May be called twice."""
        self._ended.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self._server.close()
        self._refusals.close()

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """A cluster whose network ignores NetworkPolicies, as many do, for the time of the block."""
        self._switch(enabled=False)
        try:
            yield
        finally:
            self._switch(enabled=True)

    def refresh(self) -> None:
        """Look at the cluster and change the rules now. UnsupportedPolicyError when a policy cannot be translated."""
        with self._lock:
            self._apply(self._wanted() if self._enabled else [])

    def counts(self) -> list[Count]:
        """What was allowed and refused since the start, each rule of each pod once; also of pods that are gone."""
        with self._lock:
            found = [*self._earlier, *counts(run("iptables-save", "-c", "-t", "filter"), self._live.values())]
        summed: Counter[Count] = Counter()
        for each in found:
            summed[replace(each, packets=0)] += each.packets
        return [replace(each, packets=packets) for each, packets in summed.items()]

    def refusals(self) -> list[Refusal]:
        """What pods tried and were refused, as the kernel logged it: at most 50 a second, after a burst of 500."""
        return self._refusals.read()

    def _switch(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self.refresh()

    def _serve(self) -> None:
        """Each connection tells of one pod and is answered when its rules are there."""
        while not self._ended.is_set():
            try:
                connection, _ = self._server.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(30.0)
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        try:
            told = json.loads(connection.makefile().readline())
            with self._lock:
                self._told[told["uid"]] = told["address"]
            self.refresh()
            connection.sendall(b"ok\n")
        except (ApiError, CommandError, UnsupportedPolicyError, OSError, urllib3.exceptions.HTTPError) as error:
            self._report(str(error))
            connection.sendall(f"{error}\n".encode())

    def _watch(self) -> None:
        while not self._ended.wait(POLL_S):
            try:
                self.refresh()
                self._report(None)
            except (ApiError, urllib3.exceptions.HTTPError):  # the API server is away; the rules stay as they are
                continue
            except (CommandError, UnsupportedPolicyError) as error:
                self._report(str(error))

    def _report(self, problem: str | None) -> None:
        if problem and problem != self.problem:
            print(f"NetworkPolicies: {problem}", file=sys.stderr, flush=True)
        self.problem = problem

    def _wanted(self) -> list[Isolation]:
        policies = self._list("/apis/networking.k8s.io/v1/networkpolicies")
        spaces = self._list("/api/v1/namespaces")
        labels = {each["metadata"]["name"]: each["metadata"].get("labels", {}) for each in spaces}
        pods = self._pods()
        self._refusals.know({pod.address: pod.key for pod in pods})
        return isolations(policies, pods, labels)

    def _pods(self) -> list[Pod]:
        found = self._list("/api/v1/pods")
        there = {each["metadata"]["uid"] for each in found}
        self._told = {uid: address for uid, address in self._told.items() if uid in there}
        return pods_with_addresses(found, self._told)

    def _list(self, path: str) -> list[Object]:
        items: list[Object] = self._cluster.api.get(path)["items"]
        return items

    def _apply(self, wanted: list[Isolation]) -> None:
        if wanted == list(self._live.values()):
            return
        run("iptables-restore", *WAIT, "--noflush", text=change_script(wanted, self._live))
        before, self._live = self._live, {chain_name(each): each for each in wanted}
        if gone := {name: each for name, each in before.items() if name not in self._live}:
            self._earlier += counts(run("iptables-save", "-c", "-t", "filter"), gone.values())
            run("iptables-restore", *WAIT, "--noflush", text=removal_script(gone))
