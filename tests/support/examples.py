"""The manifests of examples/, and the jobs in the blocks of the documentation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from cloister_api.yaml_tree import read_documents
from cloister_operator.settings import Settings
from cloister_operator.settings_file import parse_settings
from support.chart import objects, render
from support.pages import ROOT, VALUES, blocks

EXAMPLES = ROOT / "examples"
CHART_VALUES = EXAMPLES / "values.yaml"

Object = dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """A Kubernetes object that a reader may apply, and where it stands."""

    place: str
    object: Object

    def __str__(self) -> str:
        return f"{self.place} {self.object['kind']} {self.object['metadata']['name']}"


def manifests() -> list[Shown]:
    """Every object in examples/."""
    files = [path for path in sorted(EXAMPLES.rglob("*.yaml")) if path != CHART_VALUES]
    return [
        Shown(str(path.relative_to(ROOT)), document.value)
        for path in files
        for document in read_documents(path.read_text())
    ]


def of_kind(kind: str, folder: str = "") -> list[Shown]:
    """The objects of one kind in examples/, or in one folder of it."""
    return [each for each in manifests() if each.object["kind"] == kind and f"examples/{folder}" in each.place]


def jobs() -> list[Shown]:
    """Every FineTuneJob in examples/."""
    return of_kind("FineTuneJob")


def shown_jobs() -> list[Shown]:
    """Every FineTuneJob in a block of a page: whole ones, and parts of one over the smallest job."""
    found = []
    for block in blocks("yaml"):
        (document,) = read_documents(block.text)
        if not block.text.startswith(VALUES):
            job = document.value if "apiVersion" in document.value else merged(SMALLEST, document.value)
            found.append(Shown(str(block), job))
    return found


def merged(whole: Object, part: Object) -> Object:
    """`part` of a job over `whole`. dataset.sources stands in place of dataset.uri."""
    result = dict(whole)
    for key, value in part.items():
        below = whole.get(key)
        result[key] = merged(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    if "sources" in part:
        result.pop("uri", None)
    return result


@cache
def example_settings() -> Settings:
    """What examples/values.yaml makes of the administrator's settings."""
    (config_map,) = [
        each
        for each in objects(render("--values", str(CHART_VALUES)))
        if each["kind"] == "ConfigMap" and "settings.yaml" in each.get("data", {})
    ]
    return parse_settings(config_map["data"]["settings.yaml"], str(CHART_VALUES))


SMALLEST: Object = {
    "apiVersion": "cloister.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "example"},
    "spec": {"model": {"uri": "s3://m/m"}, "dataset": {"uri": "s3://d/d.jsonl"}, "output": {"uri": "s3://a/a"}},
}
