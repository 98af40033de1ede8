"""`python -m cloister_operator.store_credentials`: keys for the in-cluster object store, made once and kept.

One Secret holds SeaweedFS's identities and its administrator's keys; every tenant has a Secret with keys of its own in
its namespace. Keys stay as they are; who may do what follows the tenants that are given. A Secret that this store did
not make is never written to: it is told by its annotation, and a write counts only if it is still as it was then.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloister_api.exit_codes import ExitCode
from cloister_operator.cluster import Cluster, ClusterError, Object, connect
from cloister_operator.metrics import count_call
from cloister_operator.names import MANAGED_BY_LABEL
from cloister_operator.observe import reading

OWNER = "cloister-store"
STORE_ANNOTATION = "cloister.dev/store"
"""namespace/name of the store's Secret: whose keys a Secret holds."""
ADMIN = "admin"
ADMIN_ACTIONS = ("Admin", "Read", "Write", "List", "Tagging")
IDENTITIES = "identities.json"


@dataclass(frozen=True)
class Tenant:
    """A namespace that gets keys, and the buckets, or parts such as adapters/legal/*, that they open."""

    namespace: str
    secret: str
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()

    @property
    def actions(self) -> tuple[str, ...]:
        """SeaweedFS's actions. Whoever writes also reads."""
        reads = [f"{action}:{place}" for place in self.read for action in ("Read", "List")]
        writes = [f"{action}:{place}" for place in self.write for action in ("Read", "List", "Write", "Tagging")]
        return (*reads, *writes)


@dataclass(frozen=True)
class Keys:
    """What S3 clients sign with."""

    access: str
    secret: str

    def environment(self) -> dict[str, str]:
        """By AWS's own names."""
        return {"AWS_ACCESS_KEY_ID": self.access, "AWS_SECRET_ACCESS_KEY": self.secret}


class ForeignSecretError(Exception):
    """A Secret that somebody else, or another store, made has the name of one of ours."""


def new_keys() -> Keys:
    """Random keys."""
    return Keys(secrets.token_hex(10), secrets.token_hex(20))


def keys_by_identity(
    known: Mapping[str, Keys], tenants: Sequence[Tenant], make: Callable[[], Keys] = new_keys
) -> dict[str, Keys]:
    """The keys of the administrator and of every tenant: those that are known, else new ones."""
    return {name: known.get(name) or make() for name in (ADMIN, *(tenant.namespace for tenant in tenants))}


def identities(keys: Mapping[str, Keys], tenants: Sequence[Tenant]) -> dict[str, Any]:
    """SeaweedFS's configuration of who may do what."""
    actions = {ADMIN: ADMIN_ACTIONS} | {tenant.namespace: tenant.actions for tenant in tenants}
    return {
        "identities": [
            {
                "name": name,
                "credentials": [{"accessKey": each.access, "secretKey": each.secret}],
                "actions": list(actions[name]),
            }
            for name, each in keys.items()
        ]
    }


def known_keys(stored: Object | None) -> dict[str, Keys]:
    """The keys in the store's Secret, by identity."""
    if stored is None:
        return {}
    found = json.loads(base64.b64decode(stored["data"][IDENTITIES]))["identities"]
    return {
        each["name"]: Keys(each["credentials"][0]["accessKey"], each["credentials"][0]["secretKey"]) for each in found
    }


def secret(store: str, namespace: str, name: str, data: Mapping[str, str]) -> Object:
    """A Secret of a store's."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {MANAGED_BY_LABEL: OWNER},
            "annotations": {STORE_ANNOTATION: store},
        },
        "type": "Opaque",
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
    }


async def ensure(cluster: Cluster, namespace: str, name: str, tenants: Sequence[Tenant]) -> None:
    """Make or complete all Secrets. Raises ForeignSecretError before anything is written, and ClusterError."""
    store = f"{namespace}/{name}"
    stored = await own_secret(cluster, store, namespace, name)
    held = [await own_secret(cluster, store, tenant.namespace, tenant.secret) for tenant in tenants]
    keys = keys_by_identity(known_keys(stored), tenants)
    config = json.dumps(identities(keys, tenants))
    own = {IDENTITIES: config, **keys[ADMIN].environment()}
    await _write(cluster, stored, secret(store, namespace, name, own))
    for tenant, found in zip(tenants, held, strict=True):
        environment = keys[tenant.namespace].environment()
        await _write(cluster, found, secret(store, tenant.namespace, tenant.secret, environment))


async def own_secret(cluster: Cluster, store: str, namespace: str, name: str) -> Object | None:
    """The Secret, or None where there is none yet. Raises ForeignSecretError."""
    found = await cluster.get("Secret", namespace, name)
    if found is None:
        return None
    whose = reading.labels(found, "annotations").get(STORE_ANNOTATION)
    if reading.labels(found).get(MANAGED_BY_LABEL) != OWNER or whose is None:
        raise ForeignSecretError(
            f"The Secret {name} in namespace {namespace} was not made by this chart, so it is left as it is. Rename or "
            f"delete it to get keys of the in-cluster store, or take {namespace} out of store.tenants (and choose "
            "another readiness.namespace)."
        )
    if whose != store:
        raise ForeignSecretError(
            f"The Secret {name} in namespace {namespace} holds keys of another in-cluster store, whose own Secret is "
            f"{whose}, and jobs there use them, so it is left as it is. A namespace has keys of one store: take "
            f"{namespace} out of store.tenants (and choose another readiness.namespace), or delete the Secret when "
            "that store is no longer used."
        )
    return found


async def _write(cluster: Cluster, found: Object | None, wanted: Object) -> None:
    """Make the Secret, or complete the one that was found, if it is still as it was found."""
    if found is None:
        await cluster.create(wanted)
    else:
        unchanged = {"resourceVersion": found["metadata"]["resourceVersion"]}
        await cluster.patch("Secret", found, {"metadata": unchanged, "data": wanted["data"]})


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 10 for a Secret that is not the store's, 1 when one cannot be made, each with a sentence."""
    parser = argparse.ArgumentParser(prog="python -m cloister_operator.store_credentials", description=__doc__)
    parser.add_argument("--namespace", required=True, help="where the store runs")
    parser.add_argument("--secret", required=True, help="the store's Secret")
    parser.add_argument("--tenants", required=True, help="JSON list of {namespace, secret, read, write}")
    options = parser.parse_args(arguments)
    tenants = [
        Tenant(each["namespace"], each["secret"], tuple(each["read"]), tuple(each["write"]))
        for each in json.loads(options.tenants)
    ]
    try:
        asyncio.run(_connected(options.namespace, options.secret, tenants))
    except (ForeignSecretError, ClusterError) as error:
        sys.stderr.write(f"{error}\n")
        return ExitCode.REFUSED if isinstance(error, ForeignSecretError) else 1
    where = ", ".join(f"{tenant.namespace}/{tenant.secret}" for tenant in tenants)
    sys.stdout.write(f"The store's keys are in {options.namespace}/{options.secret}; tenants' keys are in {where}.\n")
    return 0


async def _connected(namespace: str, name: str, tenants: Sequence[Tenant]) -> None:
    async with connect(count_call) as cluster:
        await ensure(cluster, namespace, name, tenants)


if __name__ == "__main__":
    sys.exit(main())
