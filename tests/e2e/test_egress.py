"""A network that does not enforce policies, or a proof that cannot be had, ends a job before it reads data."""

from __future__ import annotations

import json

import pytest

from cluster.control_plane.access import wait_until
from e2e.cluster.node import Node
from e2e.installation import NAMESPACE, RELEASE, Installation
from e2e.jobs import FINAL, FineTune, tiny_job

pytestmark = [pytest.mark.timeout(1500), pytest.mark.full]
UNPROVEN_LIMIT_S = 900.0
CLOSED = [{"op": "remove", "path": "/spec/ingress/0"}]


def test_without_enforcement_no_data_is_read(node: Node, installation: Installation) -> None:
    tenant = installation.tenants[0]
    with node.policies.switched_off():
        job = FineTune.apply(node, tiny_job(tenant, "open-network"))
        wait_until(lambda: job.phase in FINAL, "the job's end", 180.0)
    status = job.status
    assert (status["phase"], status["reason"]) == ("Failed", "EgressNotEnforced"), job.told()
    assert job.condition("EgressRestricted") == ("False", "NotEnforced")
    assert "no data was read" in status["message"]
    uid = job.read()["metadata"]["uid"]
    assert not installation.keys("cloister-runs", f"{tenant}/{uid}/tokens/")


def test_without_the_operators_port_nothing_is_proven(node: Node, installation: Installation) -> None:
    """The operator's own policy no longer lets jobs in to its control port."""
    policy = ["networkpolicy", f"{RELEASE}-operator"]
    node.kubectl("patch", *policy, "--type=json", "--patch", json.dumps(CLOSED), namespace=NAMESPACE)
    try:
        job = FineTune.apply(node, tiny_job(installation.tenants[0], "no-control", {"spec.backoffLimit": 0}))
        wait_until(lambda: job.phase in FINAL, "the job's end", UNPROVEN_LIMIT_S)
    finally:
        node.kubectl("delete", *policy, namespace=NAMESPACE)
        installation.upgrade()
    status = job.status
    assert (status["phase"], status["reason"]) == ("Failed", "EgressUnproven"), job.told()
    assert job.condition("EgressRestricted") == ("False", "Unproven")
    assert "control port" in status["message"]
