"""The FineTuneJob's CRD on a real API server: accepted, explained, with defaults, status and columns."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cloister_api.crd import CRD_NAME, root_schema
from cloister_api.job import KIND, FineTuneJob, FineTuneJobSpec
from cloister_api.status import FineTuneJobStatus
from cluster.control_plane.access import Cluster, KubectlError
from cluster.control_plane.api import ApiError
from cluster.control_plane.install import CRD_FILE
from cluster.jobs import create_job, job_in, jobs_path, try_job
from support.api_jobs import OTHER_VALUES

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
STATUS = {
    "phase": "Training",
    "reason": "Unschedulable",
    "progress": {
        "step": 37,
        "totalSteps": 100,
        "percent": 37,
        "summary": "37%",
        "epoch": 1.1,
        "loss": 0.5312,
        "learningRate": 0.0002,
        "tokensPerSecond": 1234.5,
        "eta": "1h30m",
        "updatedAt": "2026-01-01T00:00:00Z",
    },
    "output": {
        "uri": "s3://adapters/legal/contracts/u-1",
        "manifestDigest": f"sha256:{'0' * 64}",
        "adapterDigest": f"sha256:{'1' * 64}",
        "sizeBytes": 1,
    },
}


def one_line(text: str) -> str:
    return " ".join(text.split())


def fields_of(model: type[FineTuneJobSpec] | type[FineTuneJobStatus]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def test_the_server_finds_nothing_wrong_with_the_crd(cluster: Cluster) -> None:
    crd = cluster.api.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{CRD_NAME}")
    conditions = {each["type"]: each["status"] for each in crd["status"]["conditions"]}
    assert conditions == {"Established": "True", "NamesAccepted": "True"}  # NonStructuralSchema would be a third
    assert crd["status"]["storedVersions"] == ["v1alpha1"]


def test_applying_the_crd_again_changes_nothing(cluster: Cluster) -> None:
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{CRD_NAME}"
    before = cluster.api.get(path)["metadata"]["generation"]
    said = cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD_FILE))
    assert "serverside-applied" in said
    assert cluster.api.get(path)["metadata"]["generation"] == before


@pytest.mark.parametrize("field", fields_of(FineTuneJobSpec))
def test_kubectl_explains_every_field_of_the_spec(cluster: Cluster, field: str) -> None:
    schema = root_schema()["properties"]["spec"]["properties"][field]
    explained = one_line(cluster.kubectl("explain", f"ftj.spec.{field}"))
    assert f"FIELD: {field} <{explained_type(schema)}>" in explained
    assert one_line(schema["description"]) in explained
    for name, part in schema.get("properties", {}).items():
        assert f" {name} <" in explained
        assert one_line(part["description"]) in explained


def explained_type(schema: dict[str, Any]) -> str:
    return "Object" if schema["type"] == "object" else str(schema["type"])


def test_kubectl_explains_the_whole_and_the_status(cluster: Cluster) -> None:
    whole = one_line(cluster.kubectl("explain", "finetunejobs"))
    assert one_line(FineTuneJob.__doc__ or "") in whole
    status = one_line(cluster.kubectl("explain", "ftj.status"))
    for name, part in root_schema()["properties"]["status"]["properties"].items():
        assert f" {name} <" in status
        assert one_line(part["description"]) in status


def test_the_smallest_job_gets_the_golden_defaults(cluster: Cluster, namespace: str) -> None:
    created = create_job(cluster, namespace)
    golden = json.loads((GOLDEN / "smallest-job.resolved.json").read_text())
    assert created["spec"] == golden["spec"]


@pytest.mark.parametrize("field", OTHER_VALUES)
def test_the_server_reads_a_field_as_python_does(cluster: Cluster, namespace: str, field: str) -> None:
    changes = {f"spec.{field}": OTHER_VALUES[field]}
    kept = FineTuneJobSpec.model_validate(try_job(cluster, namespace, changes)["spec"])
    assert kept == FineTuneJob.model_validate(job_in(namespace, changes)).spec


def test_a_misspelt_field_is_refused_by_kubectl(cluster: Cluster, namespace: str) -> None:
    job = job_in(namespace, {"spec.traning": {"epochs": 1}})
    with pytest.raises(KubectlError, match=r'unknown field "spec.traning"'):
        cluster.kubectl("apply", "-f", "-", text=json.dumps(job))


@pytest.mark.parametrize("name", ["x" * 41, "1st", "a.b", "ends-"])
def test_a_name_that_children_cannot_carry_is_refused(cluster: Cluster, namespace: str, name: str) -> None:
    with pytest.raises(ApiError) as refusal:
        try_job(cluster, namespace, {"metadata.name": name})
    assert refusal.value.code == 422
    assert "metadata.name must have at most 40 characters" in refusal.value.message


def test_the_status_is_written_on_its_own_path_only(cluster: Cluster, namespace: str) -> None:
    created = create_job(cluster, namespace, {"status": STATUS})
    assert "status" not in created
    path = jobs_path(namespace, "contracts")
    changed = cluster.api.patch(f"{path}/status", {"status": STATUS, "spec": {"suspend": True}})
    assert changed["status"] == STATUS
    assert changed["spec"]["suspend"] is False
    assert changed["metadata"]["generation"] == created["metadata"]["generation"]


def test_the_columns_print(cluster: Cluster, namespace: str) -> None:
    create_job(cluster, namespace, {"metadata.labels": {"kueue.x-k8s.io/queue-name": "research"}})
    assert columns(cluster, namespace) == {"NAME": "contracts", "AGE": AGE}
    cluster.api.patch(f"{jobs_path(namespace, 'contracts')}/status", {"status": STATUS})
    narrow = {
        "NAME": "contracts",
        "PHASE": "Training",
        "REASON": "Unschedulable",
        "PROGRESS": "37%",
        "LOSS": "0.5312",
        "ETA": "1h30m",
        "AGE": AGE,
    }
    assert columns(cluster, namespace) == narrow
    assert columns(cluster, namespace, "--output=wide") == narrow | {
        "WORKERS": "1",
        "MODEL": "s3://models/llama-3.1-8b-instruct",
        "ADAPTER": "s3://adapters/legal/contracts/u-1",
        "QUEUE": "research",
    }


AGE = "(an age)"


def columns(cluster: Cluster, namespace: str, *arguments: str) -> dict[str, str]:
    """What `kubectl get ftj` prints below each heading, empty cells left out."""
    head, line = cluster.kubectl("get", "ftj", *arguments, namespace=namespace).splitlines()
    spans = [match.span() for match in re.finditer(r"\S+\s*", head)]
    cells = {head[start:end].strip(): line[start:end].strip() for start, end in spans[:-1]}
    cells[head[spans[-1][0] :].strip()] = line[spans[-1][0] :].strip()
    assert cells["AGE"].endswith("s")
    return {name: AGE if name == "AGE" else cell for name, cell in cells.items() if cell}


def test_kubectl_get_all_lists_jobs(cluster: Cluster, namespace: str) -> None:
    create_job(cluster, namespace)
    assert f"{KIND.lower()}.cloister.dev/contracts" in cluster.kubectl("get", "all", namespace=namespace)
