"""`make control-plane`, as a person uses it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from cluster.control_plane.access import Cluster
from cluster.control_plane.binaries import program

MAKEFILE = Path(__file__).resolve().parents[2] / "Makefile"


def test_a_person_gets_a_cluster_until_ctrl_c(tmp_path: Path) -> None:
    assert "-m cluster.control_plane\n" in MAKEFILE.read_text()
    command = [sys.executable, "-m", "cluster.control_plane"]
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as plane:
        try:
            assert plane.stdout
            check_cluster([plane.stdout.readline().strip() for _ in range(2)], tmp_path)
        finally:
            plane.send_signal(signal.SIGINT)
    assert plane.returncode == 0
    assert list(tmp_path.iterdir()) == []


def check_cluster(printed: list[str], folder: Path) -> None:
    values = dict(line.removeprefix("export ").split("=", 1) for line in printed)
    assert values["PATH"] == f"{program('kubectl').parent}:$PATH"
    assert Path(values["KUBECONFIG"]).is_relative_to(folder)
    cluster = Cluster(Path(values["KUBECONFIG"]))
    nodes = [line.split()[:2] for line in cluster.kubectl("get", "nodes").splitlines()[1:]]
    assert nodes == [["gpu-0", "Ready"], ["gpu-1", "Ready"]]
    served = cluster.kubectl("api-resources", "--output=name").split()
    assert {"finetunejobs.cloister.dev", "rayjobs.ray.io", "workloads.kueue.x-k8s.io"} <= set(served)
