"""Keys of the in-cluster object store: made once, kept, and no more powerful than their tenant."""

from __future__ import annotations

import asyncio
import base64
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from botocore.exceptions import ClientError

from cloister_operator.cluster import Cluster, ClusterError
from cloister_operator.store_credentials import (
    ADMIN,
    ForeignSecretError,
    Keys,
    Tenant,
    ensure,
    identities,
    keys_by_identity,
    known_keys,
    new_keys,
)
from cloister_trainer.storage import AccessDenied, Storage, open_storage
from support.seaweedfs import Identity, SeaweedFS

LEGAL = Tenant("legal", "cloister-storage", read=("models",), write=("adapters/legal/*", "runs/legal/*"))
HR = Tenant("hr", "cloister-storage", read=("models",), write=("adapters/hr/*",))


class Secrets(Cluster):
    """The API's Secrets, in memory."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], dict[str, Any]] = {}
        self.before_write: Callable[[], None] = lambda: None

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        assert kind == "Secret"
        found = self.kept.get((namespace, name))
        return copy.deepcopy(found)

    async def create(self, rendered: dict[str, Any]) -> dict[str, Any]:
        self.before_write()
        place = rendered["metadata"]["namespace"], rendered["metadata"]["name"]
        if place in self.kept:
            raise ClusterError(409, "already exists")
        self.put(rendered, "1")
        return rendered

    async def patch(self, kind: str, found: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
        self.before_write()
        kept = self.kept[found["metadata"]["namespace"], found["metadata"]["name"]]
        if patch["metadata"]["resourceVersion"] != kept["metadata"]["resourceVersion"]:
            raise ClusterError(409, "the object has been modified")
        self.put({**kept, "data": {**kept["data"], **patch["data"]}}, f"{kept['metadata']['resourceVersion']}1")
        return kept

    def put(self, rendered: dict[str, Any], version: str) -> None:
        """What anybody writes."""
        metadata = {**rendered["metadata"], "resourceVersion": version}
        self.kept[metadata["namespace"], metadata["name"]] = {**rendered, "metadata": metadata}

    def text(self, namespace: str, name: str, key: str) -> str:
        return base64.b64decode(self.kept[namespace, name]["data"][key]).decode()


def made(cluster: Secrets, *tenants: Tenant, home: str = "cloister-system") -> None:
    asyncio.run(ensure(cluster, home, "cloister-store", tenants))


def test_everybody_gets_keys_of_their_own() -> None:
    cluster = Secrets()
    made(cluster, LEGAL, HR)
    keys = {
        cluster.text(namespace, name, "AWS_ACCESS_KEY_ID")
        for namespace, name in (("cloister-system", "cloister-store"), ("legal", LEGAL.secret), ("hr", HR.secret))
    }
    assert len(keys) == 3
    assert "identities.json" not in cluster.kept["legal", LEGAL.secret]["data"]


def test_keys_are_kept_when_it_runs_again_and_tenants_come_and_go() -> None:
    cluster = Secrets()
    made(cluster, LEGAL)
    before = cluster.text("legal", LEGAL.secret, "AWS_SECRET_ACCESS_KEY")
    admin = cluster.text("cloister-system", "cloister-store", "AWS_SECRET_ACCESS_KEY")
    made(cluster, LEGAL, HR)
    assert cluster.text("legal", LEGAL.secret, "AWS_SECRET_ACCESS_KEY") == before
    assert cluster.text("cloister-system", "cloister-store", "AWS_SECRET_ACCESS_KEY") == admin
    made(cluster, HR)
    known = known_keys(cluster.kept["cloister-system", "cloister-store"])
    assert set(known) == {ADMIN, "hr"}


def test_a_secret_that_somebody_else_made_is_left_alone_and_nothing_is_written() -> None:
    cluster = Secrets()
    theirs = {"metadata": {"name": "cloister-storage", "namespace": "hr"}, "data": {"AWS_ACCESS_KEY_ID": "eA=="}}
    cluster.kept["hr", "cloister-storage"] = theirs
    with pytest.raises(ForeignSecretError, match="cloister-storage in namespace hr was not made by this chart"):
        made(cluster, LEGAL, HR)
    assert cluster.kept == {("hr", "cloister-storage"): theirs}


def test_a_tenants_keys_of_another_store_are_left_alone_and_nothing_is_written() -> None:
    cluster = Secrets()
    made(cluster, LEGAL)
    before = copy.deepcopy(cluster.kept)
    with pytest.raises(ForeignSecretError, match="whose own Secret is cloister-system/cloister-store") as refused:
        made(cluster, HR, LEGAL, home="trial")
    assert "take legal out of store.tenants" in str(refused.value)
    assert cluster.kept == before
    made(cluster, HR, home="trial")
    assert {place for place in cluster.kept if place not in before} == {
        ("trial", "cloister-store"),
        ("hr", "cloister-storage"),
    }


@pytest.mark.parametrize("known", [False, True], ids=["new", "made before"])
def test_a_secret_that_changes_hands_between_look_and_write_is_not_written(known: bool) -> None:
    cluster = Secrets()
    if known:
        made(cluster, LEGAL)
    theirs = {"metadata": {"name": LEGAL.secret, "namespace": "legal"}, "data": {"AWS_ACCESS_KEY_ID": "eA=="}}
    cluster.before_write = lambda: cluster.put(theirs, "another")
    with pytest.raises(ClusterError):
        made(cluster, LEGAL)
    assert cluster.kept["legal", LEGAL.secret]["data"] == theirs["data"]


def test_known_keys_win_over_new_ones() -> None:
    known = {"legal": Keys("a", "b")}
    found = keys_by_identity(known, [LEGAL, HR], make=lambda: Keys("new", "new"))
    assert found == {ADMIN: Keys("new", "new"), "legal": Keys("a", "b"), "hr": Keys("new", "new")}


@pytest.fixture(scope="module")
def store() -> Iterator[SeaweedFS]:
    """A real SeaweedFS that knows what the chart would tell it of its administrator and of `legal`."""
    keys = keys_by_identity({}, [LEGAL], new_keys)
    config = {each["name"]: tuple(each["actions"]) for each in identities(keys, [LEGAL])["identities"]}
    server = SeaweedFS()
    server.admin, server.reader = (
        Identity(name, keys[name].access, keys[name].secret, config[name]) for name in (ADMIN, "legal")
    )
    with server:
        for bucket in ("models", "adapters", "runs"):
            server.create_bucket(bucket)
        for bucket, key in (("models", "m/config.json"), ("adapters", "hr/a/current.json")):
            server.client().put_object(Bucket=bucket, Key=key, Body=b"{}")
        yield server


def legals(store: SeaweedFS) -> Storage:
    return open_storage(environ=store.environment(store.reader))


def test_a_tenant_reads_models_and_does_everything_in_its_own_part(store: SeaweedFS) -> None:
    storage = legals(store)
    assert [each.name for each in storage.list("s3://models/m")] == ["config.json"]
    storage.check_conditional_put("s3://adapters/legal/contracts")
    storage.write("s3://runs/legal/u/run.json", b"{}")
    assert [each.name for each in storage.list("s3://runs/legal/u")] == ["run.json"]
    assert not storage.exists("s3://runs/legal/u/missing.json")
    assert storage.delete_prefix("s3://runs/legal/u") == 1


def test_a_tenant_reads_nothing_of_another_and_writes_nowhere_else(store: SeaweedFS) -> None:
    storage = legals(store)
    refused = [
        lambda: storage.read("s3://adapters/hr/a/current.json"),
        lambda: storage.list("s3://adapters/hr"),
        lambda: storage.write("s3://adapters/hr/a/current.json", b"changed"),
        lambda: storage.delete("s3://adapters/hr/a/current.json"),
        lambda: storage.write("s3://models/m/config.json", b"changed"),
    ]
    for attempt in refused:
        with pytest.raises(AccessDenied):
            attempt()
    with pytest.raises(ClientError, match="AccessDenied"):
        store.client(store.reader).create_bucket(Bucket="legal-s-own")
