"""Inputs of a plan without files: a run, an inspected model, an index of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cloister_api.job import FineTuneJobSpec
from cloister_api.run import Run, RunSettings
from cloister_trainer.model.folder import InspectedModel
from cloister_trainer.model.tensors import TensorInfo
from cloister_trainer.records import LicenseFinding, ListedFile, ModelRecord, TokensIndex
from support.model_folders import Tensors, config, llama_tensors


def a_run(settings: RunSettings | None = None, **spec: Any) -> Run:
    """The smallest job with `spec` over it, as its YAML would say it."""
    fields = {
        "model": {"uri": "s3://models/base"},
        "dataset": {"uri": "s3://datasets/train.jsonl"},
        "output": {"uri": "s3://adapters/x"},
    }
    return Run(
        uid="00000000-0000-4000-8000-000000000000",
        namespace="legal",
        name="contracts",
        spec=FineTuneJobSpec.model_validate(fields | spec),
        settings=settings or RunSettings(),
    )


def an_inspected_model(fields: dict[str, Any] | None = None, tensors: Tensors | None = None) -> InspectedModel:
    """A model that prepare has looked at."""
    fields = fields or config()
    infos = {name: TensorInfo(*value) for name, value in (tensors or llama_tensors()).items()}
    parameters = sum(info.parameters for info in infos.values())
    record = ModelRecord(
        uri="s3://models/base",
        model_type=fields["model_type"],
        architecture=fields["architectures"][0],
        small_files=[],
        weight_files=[ListedFile(name="model.safetensors", size=2 * parameters, etag="e")],
        header_digest="",
        fingerprint="",
        ignored_files=[],
        base_parameters=parameters,
        license=LicenseFinding(id="mit", evidence="Stated"),
        position_limit=fields["max_position_embeddings"],
    )
    return InspectedModel(record, fields, Path("unused"), infos)


def an_index(**fields: Any) -> TokensIndex:
    """Tokens of 1,000 examples of 100 tokens, 40 of them trained."""
    values: dict[str, Any] = {
        "digest": "d",
        "train": [],
        "validation": [],
        "epoch_examples": 1000,
        "epoch_tokens": 100_000,
        "epoch_trained_tokens": 40_000,
        "validation_examples": 50,
        "longest": 300,
        "pad_token_id": 0,
    }
    return TokensIndex(**values | fields)
