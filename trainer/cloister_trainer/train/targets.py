"""The weights that get an adapter, found again from the fetched model: the same function as in prepare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cloister_api.spec_training import Lora
from cloister_trainer.model.config import read_config
from cloister_trainer.model.targets import Targets, resolve_targets
from cloister_trainer.model.tensors import TensorInfo


def targets_in(folder: Path, weight_files: list[str], lora: Lora) -> Targets:
    """The targets of `lora` in the model folder with these safetensors files."""
    return resolve_targets(read_config(folder), tensors_in(folder, weight_files), lora)


def tensors_in(folder: Path, weight_files: list[str]) -> dict[str, TensorInfo]:
    """Types and shapes of a model folder's tensors, by the checkpoint's names."""
    return {
        name: TensorInfo(entry["dtype"], tuple(entry["shape"]))
        for file in weight_files
        for name, entry in _parse(folder / file)[1].items()
    }


def read_header(path: Path) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """A safetensors file's bytes up to its data, and where each tensor lies after them (first byte, end)."""
    header, entries = _parse(path)
    return header, {name: (entry["data_offsets"][0], entry["data_offsets"][1]) for name, entry in entries.items()}


def _parse(path: Path) -> tuple[bytes, dict[str, Any]]:
    with path.open("rb") as file:
        length = file.read(8)
        text = file.read(int.from_bytes(length, "little"))
    entries: dict[str, Any] = json.loads(text)
    entries.pop("__metadata__", None)
    return length + text, entries
