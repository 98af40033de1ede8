"""`make quickstart` as a stranger runs it, in a folder of its own, and what it says can be done afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ORDER = "Hi, please send six crates of oak panels to hall 3 by Thu. Ada"
ANSWER = {"item": "oak panels", "quantity": 6, "unit": "crate", "to": "hall 3", "day": "Thursday"}

pytestmark = pytest.mark.timeout(1200)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def output(folder: Path) -> str:
    finished = python("scripts/quickstart.py", "--folder", str(folder))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_it_goes_from_about_nothing_to_nine_in_ten(output: str, folder: Path) -> None:
    match = json.loads((folder / "adapter" / "checks.json").read_text())["exactMatch"]
    assert match["rows"] == 50
    assert match["before"] <= 2
    assert match["after"] >= 45
    assert f"before {match['before']} of 50, after {match['after']} of 50" in output


def test_it_says_where_everything_is(output: str, folder: Path) -> None:
    assert "Adapter   s3://adapters/orders/" in output
    assert f"open {folder}/adapter/report.html" in output
    for name in ("adapter_model.safetensors", "adapter_config.json", "manifest.json", "report.html", "LICENSE"):
        assert (folder / "adapter" / name).stat().st_size > 0


def test_the_adapter_answers_an_order_in_stock_peft(output: str, folder: Path) -> None:
    assert "scripts/try_adapter.py" in output
    tried = python("scripts/try_adapter.py", "--adapter", str(folder / "adapter"), ORDER)
    assert tried.returncode == 0, tried.stderr
    assert json.loads(tried.stdout) == ANSWER
