"""What is kept of Kubernetes' objects: thousands of them lie in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloister_operator.observe import reading

READ_OF_SPEC = {
    "ConfigMap": frozenset[str](),
    "Job": frozenset({"suspend", "managedBy"}),
    "Pod": frozenset({"nodeName"}),
    "RayCluster": frozenset[str](),
    "RayJob": frozenset({"suspend", "managedBy"}),
    "Workload": frozenset[str](),
}
"""What is kept of the specs of kinds whose specs, templates of pods above all, are most of their size."""


def what_is_read(kind: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """An object without what nothing reads."""
    metadata = {key: value for key, value in reading.part(found, "metadata").items() if key != "managedFields"}
    kept: dict[str, Any] = {**found, "metadata": metadata}
    if kind in READ_OF_SPEC:
        kept.pop("data", None)
        kept["spec"] = {key: value for key, value in reading.part(found, "spec").items() if key in READ_OF_SPEC[kind]}
    return kept
