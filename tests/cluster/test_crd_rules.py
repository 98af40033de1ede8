"""Every rule of the CRD refuses on a real API server, with its sentence and the field it is about."""

from __future__ import annotations

from typing import Any

import pytest

from cloister_api.job import MUTABLE_FIELDS, FineTuneJobSpec
from cluster.control_plane.access import Cluster
from cluster.control_plane.api import ApiError
from cluster.jobs import create_job, jobs_path, try_job
from support.api_jobs import OTHER_VALUES, RULE_CASES, RuleCase

MUTABLE = sorted(FineTuneJobSpec.model_fields[name].alias or name for name in MUTABLE_FIELDS)
IMMUTABLE = sorted(set(OTHER_VALUES) - set(MUTABLE))
OPTIONAL = ("resumeFrom", "provenance")
"""Fields without a default: a job may lack them."""


def sentences(refusal: ApiError) -> list[str]:
    """What the server says is wrong, one entry for each cause, without the words before the sentence."""
    return [cause["message"].split(": ", 2)[-1] for cause in refusal.causes]


@pytest.mark.parametrize("case", RULE_CASES, ids=str)
def test_a_rule_refuses_with_its_sentence(cluster: Cluster, namespace: str, case: RuleCase) -> None:
    if case.sentence is None:
        try_job(cluster, namespace, case.changes)
        return
    with pytest.raises(ApiError) as refusal:
        try_job(cluster, namespace, case.changes)
    assert refusal.value.code == 422
    assert sentences(refusal.value) == [case.sentence]


def test_all_broken_rules_are_told_at_once(cluster: Cluster, namespace: str) -> None:
    with pytest.raises(ApiError) as refusal:
        try_job(cluster, namespace, {"spec.dataset.sources": [{"uri": "s3://d/a", "weight": 0}]})
    assert len(sentences(refusal.value)) == 2


@pytest.mark.parametrize("field", IMMUTABLE)
def test_an_immutable_field_refuses_a_change(cluster: Cluster, namespace: str, field: str) -> None:
    create_job(cluster, namespace)
    refusal = refused_change(cluster, namespace, {field: OTHER_VALUES[field]})
    assert [cause["field"] for cause in refusal.causes] == [f"spec.{field}"]
    assert f"spec.{field} cannot be changed once the job is made; make a new job" in refusal.message


@pytest.mark.parametrize("field", OPTIONAL)
def test_an_immutable_field_cannot_be_removed(cluster: Cluster, namespace: str, field: str) -> None:
    create_job(cluster, namespace, {f"spec.{field}": OTHER_VALUES[field]})
    refusal = refused_change(cluster, namespace, {field: None})
    assert f"spec.{field} cannot be changed once the job is made; make a new job" in refusal.message


@pytest.mark.parametrize("field", MUTABLE)
def test_a_mutable_field_changes_and_changes_back(cluster: Cluster, namespace: str, field: str) -> None:
    before = create_job(cluster, namespace)["spec"]
    path = jobs_path(namespace, "contracts")
    assert cluster.api.patch(path, {"spec": {field: OTHER_VALUES[field]}})["spec"][field] == OTHER_VALUES[field]
    assert cluster.api.patch(path, {"spec": {field: before.get(field)}})["spec"] == before


def test_a_job_applied_again_changes_nothing(cluster: Cluster, namespace: str) -> None:
    created = create_job(cluster, namespace)
    path = jobs_path(namespace, "contracts")
    assert cluster.api.replace(path, created)["metadata"]["resourceVersion"] == created["metadata"]["resourceVersion"]


def refused_change(cluster: Cluster, namespace: str, changes: dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as refusal:
        cluster.api.patch(jobs_path(namespace, "contracts"), {"spec": changes})
    assert refusal.value.code == 422
    return refusal.value
