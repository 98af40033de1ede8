"""Fixtures for tests of the operator on the real API: one operator for a module, a namespace for each test.

A test module takes them with `pytest_plugins = ["cluster.operator_fixtures"]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from cluster.chronicle import COLLECTIONS, Chronicle
from cluster.control_plane.api import Object
from cluster.control_plane.kwok import create_node, delete_node
from cluster.control_plane.plane import ControlPlane
from cluster.edges.api_proxy import ApiProxy
from cluster.edges.dashboard import RayDashboard
from cluster.edges.kubelet import Kubelet
from cluster.operator_jobs import SETTINGS, Scene
from cluster.operator_process import OperatorProcess, operator
from support.child_process import Program

LARGE_NODE = {"cpu": "4k", "memory": "32Ti", "ephemeral-storage": "99Ti", "pods": "4k", "nvidia.com/gpu": "4k"}


@pytest.fixture(scope="module")
def proxy(control_plane: ControlPlane) -> Iterator[ApiProxy]:
    """A way to the API server that can be told to fail."""
    with ApiProxy(control_plane) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def through() -> Object | None:
    """How the module's operator gets to the API server: straight. Modules that use `proxy` say otherwise."""
    return None


@pytest.fixture(scope="module")
def cloister(
    control_plane: ControlPlane,
    kuberay: Program,
    gpu_nodes: tuple[str, ...],
    through: Object | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OperatorProcess]:
    """The operator, running."""
    namespace = control_plane.create_namespace()
    program = operator(control_plane, namespace, tmp_path_factory.mktemp("operator"), SETTINGS, through=through)
    program.start()
    yield program
    program.stop()
    control_plane.delete_namespace(namespace)


@pytest.fixture(scope="module")
def new_scene(
    control_plane: ControlPlane, cloister: OperatorProcess, kubelet: Kubelet, dashboard: RayDashboard
) -> Iterator[Callable[[], Scene]]:
    """Makes scenes in namespaces of their own, for tests of several jobs at once; all go when the module ends."""
    made: list[str] = []

    def make() -> Scene:
        made.append(control_plane.create_namespace())
        return Scene(control_plane, cloister, kubelet, dashboard, made[-1])

    yield make
    for namespace in made:
        control_plane.delete_namespace(namespace)


@pytest.fixture
def scene(
    control_plane: ControlPlane, cloister: OperatorProcess, kubelet: Kubelet, dashboard: RayDashboard, namespace: str
) -> Scene:
    """A namespace for one job; the operator runs when the test begins, whatever the test before did to it."""
    cloister.start()
    return Scene(control_plane, cloister, kubelet, dashboard, namespace)


@pytest.fixture(scope="module")
def large_node(control_plane: ControlPlane, gpu_nodes: tuple[str, ...]) -> Iterator[str]:
    """A node with room for the jobs of all scenes at once."""
    name = "gpu-large"
    create_node(control_plane, name, LARGE_NODE)
    yield name
    delete_node(control_plane, name)


@pytest.fixture
def chronicle(control_plane: ControlPlane, kuberay: Program) -> Iterator[Chronicle]:
    """What happens to jobs and their children while the test runs."""
    with Chronicle(control_plane, *COLLECTIONS) as chronicle:
        yield chronicle
