"""lora.initFrom by content: other weights behind the same URI are another adapter."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.spec_training import AdapterSource
from cloister_trainer.prepare.initial_adapter import adapter_fingerprint
from cloister_trainer.storage import open_storage


def of(folder: Path) -> str | None:
    return adapter_fingerprint(open_storage(environ={}), AdapterSource(uri=folder.as_uri()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    return tmp_path


def test_the_same_files_have_the_same_fingerprint(folder: Path) -> None:
    before = of(folder)
    (folder / "manifest.json").write_text("{}")
    os.utime(folder / "adapter_config.json", (1, 1))
    assert of(folder) == before


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_other_contents_of_the_same_size_have_another(folder: Path, name: str) -> None:
    before = of(folder)
    (folder / name).write_bytes((folder / name).read_bytes()[::-1])
    assert of(folder) != before


def test_a_new_adapter_has_none() -> None:
    assert adapter_fingerprint(open_storage(environ={}), None) is None


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_without_one_of_its_files_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CloisterError, match=rf"lora.initFrom.uri: .*{name}") as caught:
        of(folder)
    assert caught.value.reason is FailureReason.SPEC_INVALID
