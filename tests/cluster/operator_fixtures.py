"""Fixtures for tests of the operator on the real API: one operator for a module, a namespace for each test.

A test module takes them with `pytest_plugins = ["cluster.operator_fixtures"]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from cluster.control_plane.plane import ControlPlane
from cluster.edges.dashboard import RayDashboard
from cluster.edges.kubelet import Kubelet
from cluster.operator_jobs import SETTINGS, Scene
from cluster.operator_process import operator
from support.child_process import Program


@pytest.fixture(scope="module")
def cloister(
    control_plane: ControlPlane, kuberay: Program, gpu_nodes: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Program]:
    """The operator, running."""
    namespace = control_plane.create_namespace()
    program = operator(control_plane, namespace, tmp_path_factory.mktemp("operator"), SETTINGS)
    program.start()
    yield program
    program.stop()
    control_plane.delete_namespace(namespace)


@pytest.fixture(scope="module")
def new_scene(
    control_plane: ControlPlane, cloister: Program, kubelet: Kubelet, dashboard: RayDashboard
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
    control_plane: ControlPlane, cloister: Program, kubelet: Kubelet, dashboard: RayDashboard, namespace: str
) -> Scene:
    """A namespace for one job; the operator runs when the test begins, whatever the test before did to it."""
    cloister.start()
    return Scene(control_plane, cloister, kubelet, dashboard, namespace)
