"""The CustomResourceDefinition of the FineTuneJob, rendered from its models."""

from __future__ import annotations

from typing import Any

from cloister_api.base import LABEL_PATTERN
from cloister_api.job import GROUP, KIND, MUTABLE_FIELDS, NAME_MAX_LENGTH, VERSION, FineTuneJob, FineTuneJobSpec
from cloister_api.schema import Schema, structural_schema
from cloister_api.status import FineTuneJobStatus

PLURAL = "finetunejobs"
CRD_NAME = f"{PLURAL}.{GROUP}"

PRINTER_COLUMNS: tuple[tuple[str, str, str, str, bool], ...] = (
    ("Phase", "string", ".status.phase", "Where the job stands", False),
    ("Reason", "string", ".status.reason", "Why it waits or failed", False),
    ("Progress", "string", ".status.progress.summary", "Share of the steps made", False),
    ("Loss", "number", ".status.progress.loss", "Training loss of the newest step", False),
    ("ETA", "string", ".status.progress.eta", "Time left", False),
    ("Age", "date", ".metadata.creationTimestamp", "Time since the job was made", False),
    ("Workers", "integer", ".spec.distribution.workers", "Worker pods", True),
    ("Model", "string", ".spec.model.uri", "The base model", True),
    ("Adapter", "string", ".status.output.uri", "The published folder", True),
    ("Queue", "string", r".metadata.labels['kueue\.x-k8s\.io/queue-name']", "Kueue's local queue", True),
)
"""Name, type, JSONPath, description, and whether only `-o wide` shows it."""


def render_crd() -> dict[str, Any]:
    """The CustomResourceDefinition as a Kubernetes object."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": CRD_NAME},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "plural": PLURAL,
                "singular": KIND.lower(),
                "kind": KIND,
                "listKind": f"{KIND}List",
                "shortNames": ["ftj"],
                "categories": ["all"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(*column) for column in PRINTER_COLUMNS],
                    "schema": {"openAPIV3Schema": root_schema()},
                }
            ],
        },
    }


def root_schema() -> Schema:
    """The schema of the whole object. Of metadata only the name's bounds can be said here, as a rule."""
    name_rule = {
        "rule": f"size(self.metadata.name) <= {NAME_MAX_LENGTH} && self.metadata.name.matches('{LABEL_PATTERN}')",
        "message": f"metadata.name must have at most {NAME_MAX_LENGTH} characters: lower-case letters, digits and -, "
        "starting with a letter and ending with a letter or digit",
    }
    spec = structural_schema(FineTuneJobSpec)
    return {
        "description": " ".join((FineTuneJob.__doc__ or "").split()),
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"{GROUP}/{VERSION}"},
            "kind": {"type": "string", "description": KIND},
            "metadata": {"type": "object"},
            "spec": spec | {"x-kubernetes-validations": [*spec["x-kubernetes-validations"], *immutability_rules()]},
            "status": structural_schema(FineTuneJobStatus),
        },
        "x-kubernetes-validations": [name_rule],
    }


def immutability_rules() -> list[dict[str, str]]:
    """One transition rule for each field of the spec but MUTABLE_FIELDS: neither changed, nor added, nor removed."""
    schema = structural_schema(FineTuneJobSpec)
    rules = []
    for name, field in FineTuneJobSpec.model_fields.items():
        if name in MUTABLE_FIELDS:
            continue
        alias = field.alias or name
        always_there = alias in schema["required"] or "default" in schema["properties"][alias]
        equal = f"self.{alias} == oldSelf.{alias}"
        if not always_there:
            equal = f"has(self.{alias}) == has(oldSelf.{alias}) && (!has(self.{alias}) || {equal})"
        rules.append(
            {
                "rule": equal,
                "message": f"spec.{alias} cannot be changed once the job is made; make a new job",
                "reason": "FieldValueForbidden",
                "fieldPath": f".{alias}",
            }
        )
    return rules


def _column(name: str, kind: str, path: str, description: str, wide: bool) -> dict[str, Any]:
    column = {"name": name, "type": kind, "jsonPath": path, "description": description}
    return column | {"priority": 1} if wide else column
