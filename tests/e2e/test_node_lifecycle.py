"""The node comes, goes without a trace, and comes back; there is one at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.control_plane.access import Cluster, wait_until
from e2e.cluster.cleanup import leftovers
from e2e.cluster.node import Node
from e2e.cluster.traces import Traces
from e2e.pods import create_pod, get_pod, ready_address

pytestmark = pytest.mark.full
WARM_START_S = 90.0


def test_a_second_node_is_refused_with_the_one_that_runs(node: Node, tmp_path: Path) -> None:
    ended = command("up", tmp_path / "n")
    assert ended.returncode == 1
    assert "A node runs on this machine already" in ended.stderr
    assert str(node.folder) in ended.stderr
    assert ended.stdout == ""


def test_a_stopped_node_leaves_no_trace_and_starts_again_with_its_objects(
    node: Node, namespace: str, traces_before: Traces
) -> None:
    create_pod(node, namespace, "kept", pod={"restartPolicy": "Always"})
    ready_address(node, namespace, "kept")
    before = container_id(node, namespace, "kept")
    node.stop()
    assert leftovers(node.site) == []
    assert Traces.of_machine(node.folder).added_to(traces_before) == []
    began = time.monotonic()
    node.start()
    took = time.monotonic() - began
    assert took < WARM_START_S
    print(f"warm start: {took:.1f} s")
    wait_until(lambda: container_id(node, namespace, "kept") != before, "the pod to run in a new container")
    ready_address(node, namespace, "kept")


def test_a_person_gets_the_cluster_and_a_crash_of_it_is_cleaned_up(node: Node, traces_before: Traces) -> None:
    node.stop()
    try:
        printed = command("up", node.folder)
        values = dict(line.removeprefix("export ").split("=", 1) for line in printed.stdout.splitlines())
        cluster = Cluster(Path(values["KUBECONFIG"]))
        assert "Ready" in cluster.kubectl("get", "nodes")
        os.kill(int((node.folder / "serve.pid").read_text()), signal.SIGKILL)
        assert command("down", node.folder).returncode == 0
        assert not cluster.kubeconfig.exists()
        assert Traces.of_machine(node.folder).added_to(traces_before) == []
    finally:
        node.start()


def container_id(node: Node, namespace: str, pod: str) -> str:
    identity: str = get_pod(node, namespace, pod)["status"]["containerStatuses"][0].get("containerID", "")
    return identity


def command(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`make cluster-up` and `make cluster-down`, with a folder of their own."""
    return subprocess.run(
        [sys.executable, "-m", "e2e.cluster", name, "--folder", str(folder)],
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
