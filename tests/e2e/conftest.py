"""Fixtures of the end-to-end tests: one real cluster for the session, one namespace for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache

import pytest

from cluster.control_plane.access import Cluster, named_cluster
from e2e.cluster.kind import docker_answers, kind_cluster
from e2e.cluster.node import Node
from e2e.cluster.site import default_folder
from e2e.cluster.traces import Traces
from e2e.installation import IMAGES, TENANTS, Installation

CONTEXT = "CLOISTER_E2E_CONTEXT"
"""Environment: a context of the user's kubeconfig, whose cluster is used instead of one that the tests make."""
ARCHIVES = [IMAGES / f"{name}.tar" for name in ("operator", "store", "trainer")]


@cache
def has_own_node() -> bool:
    """Whether the cluster is a node on this machine: nobody named another, and there is no docker for kind."""
    return not os.environ.get(CONTEXT) and not docker_answers()


def pytest_report_header() -> str:
    """Say which cluster it is, and how to choose another."""
    if context := os.environ.get(CONTEXT):
        return f"cluster: the context {context}, which {CONTEXT} names"
    made = "a node on this machine" if has_own_node() else "one that kind makes in docker"
    return f"cluster: {made}; to use another: {CONTEXT}=my-context make e2e"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is about this machine's own node is no test of another cluster."""
    if not has_own_node():
        of_the_node = [item for item in items if "node" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=of_the_node)
        items[:] = [item for item in items if item not in of_the_node]


@pytest.fixture(scope="session")
def traces_before() -> Traces:
    """What this machine looked like before the node was started."""
    return Traces.of_machine(default_folder())


@pytest.fixture(scope="session")
def node(traces_before: Traces) -> Iterator[Node]:
    """A node of our own on this machine, started without the objects of the last time."""
    with Node(fresh=True) as node:
        yield node


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster of the context that CLOISTER_E2E_CONTEXT names; else kind's, where docker answers; else the node."""
    if context := os.environ.get(CONTEXT):
        named = named_cluster(context, tmp_path_factory.mktemp("named-cluster"), CONTEXT)
        yield named
        named.close()
    elif has_own_node():
        yield request.getfixturevalue("node")
    else:
        with kind_cluster(tmp_path_factory.mktemp("kind"), ARCHIVES) as made:
            yield made


@pytest.fixture(scope="session")
def installation(cluster: Cluster) -> Iterator[Installation]:
    """The chart, installed with the images that `make images` built, and inputs of jobs in its store.

    Another cluster than the node has the images loaded already, by the names that the archives carry.
    """
    for archive in ARCHIVES if isinstance(cluster, Node) else ():
        assert archive.is_file(), f"{archive} is missing: run `make images`"
        cluster.import_image(archive)
    installed = Installation(cluster, TENANTS)
    installed.install()
    installed.upload_tiny()
    yield installed
    installed.uninstall()


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """The name of a new namespace with Pod Security `restricted`; its deletion begins when the test ends."""
    name = cluster.create_namespace()
    yield name
    cluster.delete_namespace(name)
