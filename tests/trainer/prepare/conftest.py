"""Datasets prepared with SmolLM2's tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.prepared import DataJob
from support.smollm2_tokenizer import smollm2_tokenizer_folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2's tokenizer."""
    return smollm2_tokenizer_folder()


@pytest.fixture
def job(tmp_path: Path, smollm2: Path) -> DataJob:
    """An empty dataset, to be filled and prepared."""
    return DataJob(tmp_path, smollm2)
