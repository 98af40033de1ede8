"""Fixtures for tests on a real Kubernetes API: one control plane for the session, one namespace for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from cluster.control_plane.access import Cluster, named_cluster
from cluster.control_plane.install import apply_crd
from cluster.control_plane.plane import ControlPlane

NAMED_CLUSTER = "CLOISTER_TEST_CLUSTER"
"""Environment: a context of the user's kubeconfig, for tests on a cluster that they did not start."""


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """A control plane of our own, with the FineTuneJob's CRD."""
    with ControlPlane() as plane:
        apply_crd(plane)
        yield plane


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The control plane; or the cluster of the context that CLOISTER_TEST_CLUSTER names, which gets our CRD."""
    context = os.environ.get(NAMED_CLUSTER)
    if not context:
        yield request.getfixturevalue("control_plane")
        return
    named = named_cluster(context, tmp_path_factory.mktemp("named-cluster"))
    apply_crd(named)
    yield named
    named.close()


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """The name of a new namespace with Pod Security `restricted`; its deletion begins when the test ends."""
    name = cluster.create_namespace()
    yield name
    cluster.delete_namespace(name)
