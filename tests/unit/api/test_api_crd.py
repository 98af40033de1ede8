"""The CRD is one that an API server takes: structural, bounded, described, with defaults that fit their own schema."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft4Validator

from cloister_api.crd import render_crd, root_schema
from cloister_api.job import FineTuneJob, FineTuneJobSpec
from cloister_api.status import Phase
from cloister_api.yaml_tree import read_documents
from support.api_jobs import OTHER_VALUES, SMALLEST, job_with

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "golden"
Schema = dict[str, Any]


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from nodes(part, f"{path}.{name}")
    for keyword, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if keyword in schema:
            yield from nodes(schema[keyword], path + mark)


NODES = dict(nodes(root_schema()))
"""Every node of the schema by its path."""


@pytest.fixture(scope="module")
def version() -> dict[str, Any]:
    versions: list[dict[str, Any]] = render_crd()["spec"]["versions"]
    (version,) = versions
    return version


def test_names_and_scope() -> None:
    crd = render_crd()
    assert (crd["apiVersion"], crd["kind"]) == ("apiextensions.k8s.io/v1", "CustomResourceDefinition")
    assert crd["metadata"]["name"] == "finetunejobs.cloister.dev"
    assert (crd["spec"]["group"], crd["spec"]["scope"]) == ("cloister.dev", "Namespaced")
    names = crd["spec"]["names"]
    assert (names["kind"], names["plural"], names["shortNames"], names["categories"]) == (
        "FineTuneJob",
        "finetunejobs",
        ["ftj"],
        ["all"],
    )


def test_the_version_is_served_with_a_status_subresource(version: dict[str, Any]) -> None:
    assert (version["name"], version["served"], version["storage"]) == ("v1alpha1", True, True)
    assert version["subresources"] == {"status": {}}


def test_columns_are_those_of_the_design_and_lead_somewhere(version: dict[str, Any]) -> None:
    columns = version["additionalPrinterColumns"]
    narrow = [column["name"] for column in columns if "priority" not in column]
    wide = [column["name"] for column in columns if column.get("priority") == 1]
    assert narrow == ["Phase", "Reason", "Progress", "Loss", "ETA", "Age"]
    assert wide == ["Workers", "Model", "Adapter", "Queue"]
    for column in columns:
        path = column["jsonPath"]
        if not path.startswith(".metadata."):
            kind = {"date": "string"}.get(column["type"], column["type"])
            assert NODES[path]["type"] == kind, path
    assert columns[-1]["jsonPath"] == r".metadata.labels['kueue\.x-k8s\.io/queue-name']"


def test_every_node_has_one_type() -> None:
    for path, node in NODES.items():
        assert ("type" in node) != bool(node.get("x-kubernetes-int-or-string")), path


def test_no_keyword_that_a_structural_schema_forbids() -> None:
    forbidden = {
        "$ref",
        "$defs",
        "anyOf",
        "oneOf",
        "allOf",
        "not",
        "const",
        "title",
        "nullable",
        "uniqueItems",
        "examples",
    }
    for path, node in NODES.items():
        assert not forbidden & set(node), path
        assert not {"properties", "additionalProperties"} <= set(node), path
        assert node.get("additionalProperties") not in (True, False), path


def test_exclusive_bounds_are_written_as_openapi_3_0_has_them() -> None:
    exclusive = [node for node in NODES.values() if "exclusiveMinimum" in node]
    assert exclusive
    for node in exclusive:
        assert node["exclusiveMinimum"] is True
        assert "minimum" in node


def test_every_list_map_string_and_number_of_the_spec_is_bounded() -> None:
    for path, node in NODES.items():
        kind = node.get("type", "int-or-string")
        where = f"{path}: {kind}"
        if kind == "array":
            assert "maxItems" in node, where
        if "additionalProperties" in node:
            assert "maxProperties" in node, where
        if kind in ("string", "int-or-string") and path not in (".apiVersion", ".kind"):
            assert "enum" in node or "maxLength" in node, where
        if kind in ("integer", "number") and path.startswith(".spec"):
            assert {"minimum", "maximum"} <= set(node), where


def test_only_parts_of_pods_and_the_resolved_values_are_kept_unseen() -> None:
    kept = {path for path, node in NODES.items() if "x-kubernetes-preserve-unknown-fields" in node}
    affinities = set(filter(is_affinity, kept))
    assert kept - affinities == {".status.resolved"}
    assert all(path.split(".")[2] == "pods" for path in affinities)
    empty = {path for path, node in NODES.items() if node.get("type") == "object" and len(node) <= 2}
    assert empty <= kept | {".metadata"}


def test_every_field_is_described_for_kubectl_explain() -> None:
    for path, node in NODES.items():
        if path.endswith(("[]", "{}")) or path == ".metadata":
            continue
        text = node["description"]
        assert "\n" not in text, path
        assert "  " not in text, path
        assert len(text) >= (20 if path.startswith(".spec") and "properties" not in node else 3), path


def test_optional_fields_say_what_their_absence_means() -> None:
    for path, node in NODES.items():
        around, _, name = path.rpartition(".")
        parent = NODES.get(around, {})
        optional = name in parent.get("properties", {}) and name not in parent.get("required", [])
        if (
            path.startswith(".spec.")
            and optional
            and not {"default", "properties"} & set(node)
            and not is_affinity(path)
        ):
            assert re.search("Absent|or use|in place of", node["description"]), path


def is_affinity(path: str) -> bool:
    return ".affinity." in path


def test_lists_of_the_status_are_maps_by_their_keys() -> None:
    for path, key in ((".status.conditions", "type"), (".status.attempts", "number")):
        assert NODES[path]["x-kubernetes-list-type"] == "map"
        assert NODES[path]["x-kubernetes-list-map-keys"] == [key]
        assert key in NODES[f"{path}[]"]["required"]


def test_defaults_fit_their_own_schema() -> None:
    defaults = {path: node for path, node in NODES.items() if "default" in node}
    assert len(defaults) > 50
    for path, node in defaults.items():
        Draft4Validator(node).validate(node["default"])
        if node.get("type") == "object":
            assert node["default"] == with_defaults({}, node), path


def test_only_fields_that_need_a_value_are_required() -> None:
    assert {path: node["required"] for path, node in NODES.items() if "required" in node and ".status" not in path} == {
        "": ["spec"],
        ".spec": ["model", "dataset", "output"],
        ".spec.model": ["uri"],
        ".spec.dataset.sources[]": ["uri"],
        ".spec.lora.initFrom": ["uri"],
        ".spec.evaluation.gate": ["minRelativeImprovement"],
        ".spec.output": ["uri"],
        ".spec.output.signing": ["secretName"],
        ".spec.resumeFrom": ["uri"],
    }


def test_the_name_is_bounded_by_a_rule() -> None:
    (rule,) = NODES[""]["x-kubernetes-validations"]
    assert rule["rule"].startswith("size(self.metadata.name) <= 40 && self.metadata.name.matches('^[a-z]")
    assert rule["message"].startswith("metadata.name must have at most 40 characters")


def test_every_phase_is_known() -> None:
    assert NODES[".status.phase"]["enum"] == [phase.value for phase in Phase]


def test_the_server_s_defaults_and_python_s_are_the_same() -> None:
    """The smallest job, with the CRD's defaults filled in as an API server does, is the golden resolved job."""
    filled = with_defaults(copy.deepcopy(SMALLEST), root_schema())
    golden = json.loads((GOLDEN / "smallest-job.resolved.json").read_text())
    assert filled == golden
    assert FineTuneJob.model_validate(filled) == FineTuneJob.model_validate(SMALLEST)


def test_the_server_s_defaults_reach_into_what_is_given() -> None:
    given = job_with({f"spec.{field}": value for field, value in OTHER_VALUES.items()})
    filled = with_defaults(copy.deepcopy(given), root_schema())
    Draft4Validator(root_schema()).validate(filled)
    assert FineTuneJob.model_validate(filled) == FineTuneJob.model_validate(given)


def test_the_golden_yaml_and_its_object_are_one() -> None:
    (document,) = read_documents((GOLDEN / "smallest-job.yaml").read_text())
    assert document.value == SMALLEST


def test_the_written_crd_reads_back_as_it_was_rendered() -> None:
    (document,) = read_documents((ROOT / "crds" / "cloister.dev_finetunejobs.yaml").read_text())
    assert document.value == render_crd()


def test_python_s_whole_model_is_in_the_schema() -> None:
    assert set(NODES[".spec"]["properties"]) == {field.alias for field in FineTuneJobSpec.model_fields.values()}


def with_defaults(value: Any, schema: Schema) -> Any:
    """`value` with defaults filled in as the API server does: at each level, then inside what was filled in."""
    if isinstance(value, dict):
        for name, part in schema.get("properties", {}).items():
            if name not in value and "default" in part:
                value[name] = copy.deepcopy(part["default"])
        for name, inner in value.items():
            part = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
            if part:
                with_defaults(inner, part)
    if isinstance(value, list):
        for inner in value:
            with_defaults(inner, schema.get("items", {}))
    return value
