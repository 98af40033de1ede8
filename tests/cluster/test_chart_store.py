"""The in-cluster store's keys on a real API server: made by the hook with its own rights, and no other store's."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import pytest

from cluster.chart_release import Release
from cluster.edges.pod_status import Ended
from support.chart import HelmError

pytest_plugins = ["cluster.chart_fixtures"]


@pytest.fixture
def other(release: Release) -> Iterator[Release]:
    """A second release of the same name, in a namespace of its own."""
    other = Release(release.plane, release.kubelet, release.plane.create_namespace())
    yield other
    other.helm("uninstall", "--ignore-not-found")
    other.plane.delete_namespace(other.namespace)


@pytest.fixture
def tenant(release: Release) -> Iterator[str]:
    """A namespace that wants keys."""
    namespace = release.plane.create_namespace()
    yield namespace
    release.plane.delete_namespace(namespace)


def with_tenant(release: Release, tenant: str) -> tuple[str, ...]:
    """Values of a release with a store that does nothing outside its own namespace and the tenant's."""
    values = [
        "crd.install=false",
        "rbac.aggregate=false",
        f"operator.namespaces={{{release.namespace}}}",
        "store.enabled=true",
        f"store.tenants[0].namespace={tenant}",
        "store.tenants[0].read={models}",
    ]
    return "--set", ",".join(values)


def access_key(release: Release, namespace: str) -> str:
    found = release.plane.api.get(f"/api/v1/namespaces/{namespace}/secrets/cloister-storage")
    return base64.b64decode(found["data"]["AWS_ACCESS_KEY_ID"]).decode()


def test_a_tenant_of_another_releases_store_keeps_its_keys_and_helm_says_why(
    release: Release, other: Release, tenant: str, crd: None
) -> None:
    with release.running("install", *with_tenant(release, tenant)) as installing:
        _, seen = release.play_store_hooks()
        installing.result(timeout=60)
    key = access_key(release, tenant)

    with other.running("install", *with_tenant(other, tenant)) as installing:
        pod = other.wait_for_pod("store-credentials")
        ended = other.run_as(pod)
        other.kubelet.say(other.namespace, pod["metadata"]["name"], ended.stderr)
        other.end(pod, Ended(ended.returncode))
        refused = installing.exception(timeout=60)
    assert ended.returncode == 10
    assert isinstance(refused, HelmError)
    assert f"The Secret cloister-storage in namespace {tenant} holds keys of another in-cluster store" in str(refused)
    assert f"{release.namespace}/cloister-store" in str(refused)
    assert access_key(release, tenant) == key
    assert not other.plane.api.exists(other.path("secrets", "cloister-store"))

    with release.running("upgrade", *with_tenant(release, tenant)) as upgrading:
        release.play_store_hooks(seen)
        upgrading.result(timeout=60)
    assert access_key(release, tenant) == key


def test_a_rollback_lets_in_the_tenants_of_the_release_that_comes_back(
    release: Release, tenant: str, crd: None
) -> None:
    def do(command: str, *arguments: str, seen: tuple[str, ...]) -> tuple[str, ...]:
        with release.running(command, *arguments) as running:
            _, hooks = release.play_store_hooks(seen)
            running.result(timeout=60)
        return (*seen, *hooks)

    seen = do("install", *with_tenant(release, tenant), seen=())
    seen = do("upgrade", "--reset-then-reuse-values", "--set-json", "store.tenants=[]", seen=seen)
    assert tenant not in known_to_the_store(release)
    do("rollback", "1", seen=seen)
    assert known_to_the_store(release)[tenant] == access_key(release, tenant)


def known_to_the_store(release: Release) -> dict[str, str]:
    """Access keys by identity, as the store reads them."""
    found = release.plane.api.get(release.path("secrets", "cloister-store"))["data"]["identities.json"]
    identities = json.loads(base64.b64decode(found))["identities"]
    return {each["name"]: each["credentials"][0]["accessKey"] for each in identities}
