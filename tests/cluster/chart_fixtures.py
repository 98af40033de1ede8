"""Fixtures for tests of the chart: a control plane where helm installs it, and a release in a namespace of its own.

A test module takes them with `pytest_plugins = ["cluster.chart_fixtures"]`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.chart_release import Release
from cluster.control_plane.install import apply_crd
from cluster.control_plane.kuberay import install_kuberay
from cluster.control_plane.kwok import create_node, start_kwok
from cluster.control_plane.plane import ControlPlane
from cluster.edges.kubelet import Kubelet


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """For the chart's tests alone: helm owns the CRD here. KubeRay's kinds are served, its operator does not run."""
    with ControlPlane(tmp_path_factory.mktemp("chart-plane")) as plane:
        install_kuberay(plane)
        yield plane


@pytest.fixture(scope="session")
def chart_kubelet(plane: ControlPlane) -> Iterator[Kubelet]:
    with Kubelet(plane) as kubelet:
        start_kwok(plane, kubelet.port)
        create_node(plane, "gpu-0")
        yield kubelet


@pytest.fixture
def release(plane: ControlPlane, chart_kubelet: Kubelet) -> Iterator[Release]:
    """A release that is not installed yet, in a namespace of its own; uninstalled at the end."""
    namespace = plane.create_namespace()
    release = Release(plane, chart_kubelet, namespace)
    yield release
    if release.name in release.helm("list --short --filter"):
        release.helm("uninstall")
    plane.delete_namespace(namespace)


@pytest.fixture
def crd(plane: ControlPlane) -> None:
    apply_crd(plane)
