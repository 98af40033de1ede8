"""The quickstart deletes what it made, and nothing else, wherever --folder points."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The quickstart's places in a folder that is not there yet."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from quickstart import Places

    return Places(tmp_path / "quickstart")


def fill(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")


def test_a_folder_of_someone_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    mine = [tmp_path / "adapter" / "adapter_model.safetensors", tmp_path / "store" / "notes", tmp_path / "thesis.tex"]
    fill(*mine)
    finished = subprocess.run(
        [sys.executable, "scripts/quickstart.py", "--folder", str(tmp_path)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT / "tests")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 2
    assert f"{tmp_path} holds files that are not a quickstart's: give a new folder" in finished.stderr
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(mine)


def test_a_file_is_no_folder(places: Any) -> None:
    places.folder.write_text("mine")
    assert not places.claim()
    assert places.folder.read_text() == "mine"


@pytest.mark.parametrize("exists", [True, False])
def test_a_new_or_empty_folder_is_taken(places: Any, exists: bool) -> None:
    if exists:
        places.folder.mkdir()
    assert places.claim()
    assert places.claim(), "it is the quickstart's own from now on"


def test_after_a_success_only_what_it_made_is_cleared(places: Any) -> None:
    assert places.claim()
    note = places.folder / "notes.txt"
    fill(note, places.store / "volume", places.partial / "file", places.adapter / "adapter_config.json")
    assert places.claim()
    assert not any(made.exists() for made in (places.store, places.partial, places.adapter))
    assert note.read_text() == "mine"
    assert places.claim()


def test_an_interrupted_run_keeps_its_store(places: Any) -> None:
    assert places.claim()
    fill(places.store / "volume")
    assert places.claim()
    assert (places.store / "volume").exists()
