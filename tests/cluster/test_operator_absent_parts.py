"""A cluster of its own that has neither KubeRay nor Kueue when the operator starts, and gets KubeRay later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.control_plane.install import apply_crd
from cluster.control_plane.kuberay import install_kuberay, start_kuberay
from cluster.control_plane.kwok import create_node, start_kwok
from cluster.control_plane.plane import ControlPlane
from cluster.edges.dashboard import RayDashboard
from cluster.edges.kubelet import Kubelet
from cluster.operator_jobs import SETTINGS, Scene
from cluster.operator_process import operator
from cluster.operator_stories import assert_complete_at_the_first_attempt, goes_by_itself
from support.seaweedfs import free_ports

NOTICED_S = 90
"""The operator looks once a minute whether KubeRay is there."""


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane with our CRD alone."""
    folder = tmp_path / "plane"
    folder.mkdir()
    with ControlPlane(folder) as plane:
        apply_crd(plane)
        yield plane


def test_kuberay_may_come_after_the_operator_and_kueue_never(bare: ControlPlane, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    namespace = bare.create_namespace()
    program = operator(bare, bare.create_namespace(), tmp_path, SETTINGS)
    with Kubelet(bare) as kubelet, RayDashboard(port) as dashboard:
        start_kwok(bare, kubelet.port)
        create_node(bare, "gpu-0")
        program.start()
        try:
            scene = Scene(bare, program, kubelet, dashboard, namespace)
            goes_by_itself(scene)
            status = scene.wait_for("Queued", "KubeRayMissing", "This cluster has no RayJobs (ray.io/v1).")
            assert status["message"].endswith("Install KubeRay 1.6 or newer.")
            assert scene.conditions()["Prepared"] == ("True", "Prepared")
            before = program.pid
            install_kuberay(bare)
            start_kuberay(bare, port)
            scene.wait_until(lambda status: status.get("phase") == "Complete", "the end", NOTICED_S)
            assert_complete_at_the_first_attempt(scene)
            assert program.pid == before, "it needed no new start"
            later = Scene(bare, program, kubelet, dashboard, namespace, "later")
            goes_by_itself(later)
            assert_complete_at_the_first_attempt(later)
        finally:
            program.stop()
