"""Fixtures for tests on a real Kubernetes API: one control plane for the session, one namespace for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.control_plane.access import Cluster, named_cluster
from cluster.control_plane.install import apply_crd
from cluster.control_plane.kuberay import install_kuberay, start_kuberay
from cluster.control_plane.kueue import install_kueue, start_kueue
from cluster.control_plane.kwok import create_node, start_kwok
from cluster.control_plane.plane import ControlPlane
from cluster.edges.dashboard import RayDashboard
from cluster.edges.kubelet import Kubelet
from support.child_process import Program
from support.seaweedfs import free_ports

NAMED_CLUSTER = "CLOISTER_TEST_CLUSTER"
"""Environment: a context of the user's kubeconfig, for tests on a cluster that they did not start."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These tests come last, so that their programs run beside no others."""
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.is_relative_to(here))


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane of our own, with the FineTuneJob's CRD. pytest keeps the logs for a few runs."""
    with ControlPlane(tmp_path_factory.mktemp("control-plane")) as plane:
        apply_crd(plane)
        yield plane


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The control plane; or the cluster of the context that CLOISTER_TEST_CLUSTER names, which gets our CRD."""
    context = os.environ.get(NAMED_CLUSTER)
    if not context:
        yield request.getfixturevalue("control_plane")
        return
    named = named_cluster(context, tmp_path_factory.mktemp("named-cluster"), NAMED_CLUSTER)
    apply_crd(named)
    yield named
    named.close()


@pytest.fixture(scope="session")
def dashboard_port() -> int:
    """Where KubeRay looks for every Ray dashboard; a test listens there to play one."""
    (port,) = free_ports(1)
    return port


@pytest.fixture(scope="session")
def kuberay(control_plane: ControlPlane, dashboard_port: int) -> Program:
    """The KubeRay operator."""
    install_kuberay(control_plane)
    return start_kuberay(control_plane, dashboard_port)


@pytest.fixture(scope="session")
def kueue(control_plane: ControlPlane, kuberay: Program) -> Program:
    """Kueue, for RayJobs and Jobs. KubeRay comes first: Kueue looks for RayJobs when it starts."""
    install_kueue(control_plane)
    return start_kueue(control_plane)


@pytest.fixture(scope="session")
def kubelet(control_plane: ControlPlane) -> Iterator[Kubelet]:
    """What starts and ends the pods of all nodes."""
    with Kubelet(control_plane) as kubelet:
        yield kubelet


@pytest.fixture(scope="session")
def dashboard(dashboard_port: int) -> Iterator[RayDashboard]:
    """What KubeRay takes for every head's dashboard."""
    with RayDashboard(dashboard_port) as dashboard:
        yield dashboard


@pytest.fixture(scope="session")
def gpu_nodes(control_plane: ControlPlane, kubelet: Kubelet) -> tuple[str, ...]:
    """Names of two Ready nodes with 8 GPUs each."""
    start_kwok(control_plane, kubelet.port)
    names = ("gpu-0", "gpu-1")
    for name in names:
        create_node(control_plane, name)
    return names


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """The name of a new namespace with Pod Security `restricted`; its deletion begins when the test ends."""
    name = cluster.create_namespace()
    yield name
    cluster.delete_namespace(name)
