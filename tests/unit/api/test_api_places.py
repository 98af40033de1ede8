"""What a job writes never lies among what it reads, whoever chose the place."""

from __future__ import annotations

from typing import Any

import pytest

from cloister_api.errors import CloisterError
from cloister_api.job import FineTuneJob
from cloister_api.places import misplaced
from cloister_api.reasons import FailureReason
from cloister_api.resolve import resolve_spec
from cloister_api.run import RunSettings, StorageDefaults
from cloister_api.yaml_tree import dotted
from support.api_jobs import REMOVED, SMALLEST, job_with

BELOW = "s3://datasets/contracts"
CASES: list[tuple[dict[str, Any], list[str]]] = [
    ({}, []),
    ({"output.uri": "s3://models/llama-3.1-8b-instruct"}, ["spec.output.uri"]),
    ({"output.uri": "s3://models/llama-3.1-8b-instruct/adapters"}, ["spec.output.uri"]),
    ({"output.uri": "s3://models/llama-3.1-8b-instruct-adapters"}, []),
    ({"output.uri": "s3://models"}, []),
    ({"model.uri": "s3://models/", "output.uri": "s3://models/x"}, ["spec.output.uri"]),
    ({"model.uri": "pvc://models/x", "output.uri": "s3://models/x"}, []),
    ({"model.uri": "file:///a//b/", "storage.runUri": "file:///a/b/c"}, ["spec.storage.runUri"]),
    ({"dataset.uri": BELOW, "dataset.cacheUri": f"{BELOW}/cache"}, ["spec.dataset.cacheUri"]),
    ({"dataset.validation": {"uri": BELOW}, "output.uri": f"{BELOW}/out"}, ["spec.output.uri"]),
    (
        {"dataset.uri": REMOVED, "dataset.sources": [{"uri": "s3://d/a"}, {"uri": BELOW}], "output.uri": BELOW},
        ["spec.output.uri"],
    ),
    ({"lora.initFrom": {"uri": "s3://adapters/first"}, "output.uri": "s3://adapters/first"}, ["spec.output.uri"]),
    ({"model.chatTemplate": {"uri": "s3://t/x.jinja"}, "output.uri": "s3://t"}, []),
]


@pytest.mark.parametrize(("changes", "fields"), CASES, ids=[str(changes) for changes, _ in CASES])
def test_a_place_among_the_inputs_is_found(changes: dict[str, Any], fields: list[str]) -> None:
    spec = FineTuneJob.model_validate(job_with({f"spec.{path}": value for path, value in changes.items()})).spec
    assert [dotted(problem.path) for problem in misplaced(spec)] == fields


def test_the_administrator_s_place_for_runs_is_held_against_the_inputs_too() -> None:
    settings = RunSettings(storage=StorageDefaults(run_uri="s3://datasets/contracts/train.jsonl/{namespace}"))
    with pytest.raises(CloisterError, match=r"spec\.storage\.runUri: lies in spec\.dataset\.uri") as refused:
        resolve_spec(FineTuneJob.model_validate(SMALLEST).spec, "legal", settings)
    assert refused.value.reason is FailureReason.SPEC_INVALID
