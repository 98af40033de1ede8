"""A tiny model and its adapter, made once for all tests of publish."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.staged_run import make_adapter, make_model


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with tokenizer and licence in a Hugging Face folder."""
    return make_model(tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of it that stock PEFT saved."""
    folder = tmp_path_factory.mktemp("adapter")
    make_adapter(tiny_llama, folder)
    return folder
