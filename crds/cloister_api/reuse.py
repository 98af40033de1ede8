"""The key by which an adapter that was made before can stand for a new one."""

from __future__ import annotations

import hashlib
from typing import Any

from cloister_api.job import FineTuneJobSpec
from cloister_api.run import canonical_json

_RESULT_FIELDS: dict[str, set[str] | bool] = {
    "model": {"uri", "license", "chat_template"},
    "dataset": {
        "uri",
        "sources",
        "format",
        "columns",
        "system_prompt",
        "train_on",
        "too_long",
        "deduplicate",
        "validation",
    },
    "lora": True,
    "training": True,
    "evaluation": True,
    "output": {"merged_model", "servable_by"},
}
"""Fields of the spec that affect the published files. Caches, pods, workers, storage and checkpoints do not."""


def reuse_key(
    spec: FineTuneJobSpec, model_fingerprint: str, dataset_digest: str, initial_adapter: str | None = None
) -> str:
    """sha256 (hexadecimal) over what an adapter was made from and how.

    Only fields that differ from the schema's default count, so that a field added to the API later, left out, changes
    no key. URIs count besides fingerprints and digest: the manifest names them. `initial_adapter` is the fingerprint of
    the adapter that lora.initFrom names; None without one.
    """
    inputs = {"spec": result_fields(spec), "model": model_fingerprint, "dataset": dataset_digest}
    if initial_adapter is not None:
        inputs["initialAdapter"] = initial_adapter
    return hashlib.sha256(canonical_json(inputs).encode()).hexdigest()


def result_fields(spec: FineTuneJobSpec) -> dict[str, Any]:
    """The fields that affect the published files, where they differ from the schema's defaults; as JSON."""
    return spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, include=_RESULT_FIELDS)
