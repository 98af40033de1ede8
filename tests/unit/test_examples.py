"""Every manifest under examples/ loads, and the quickstart's data are what its script writes."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister_api.loading import load_jobs

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
QUICKSTART = EXAMPLES / "01-quickstart"
MANIFESTS = sorted(EXAMPLES.rglob("*.yaml"))


def rows(name: str) -> Iterator[list[dict[str, str]]]:
    for line in (QUICKSTART / name).read_text().splitlines():
        yield json.loads(line)["messages"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_every_example_loads(path: Path) -> None:
    (job,) = load_jobs(path)
    assert job.metadata.name


def test_every_folder_is_in_the_overview() -> None:
    overview = (EXAMPLES / "README.md").read_text()
    folders = [path for path in EXAMPLES.iterdir() if path.is_dir()]
    assert len(folders) >= 3
    for folder in folders:
        assert f"({folder.name}" in overview


def test_the_quickstart_data_are_what_the_script_writes(tmp_path: Path) -> None:
    script = tmp_path / "make_data.py"
    script.write_text((QUICKSTART / "make_data.py").read_text())
    runpy.run_path(str(script), run_name="__main__")
    for name in ("train.jsonl", "holdout.jsonl"):
        assert (tmp_path / name).read_bytes() == (QUICKSTART / name).read_bytes()


def test_no_held_out_order_is_trained_on() -> None:
    trained = {messages[1]["content"] for messages in rows("train.jsonl")}
    held_out = {messages[1]["content"] for messages in rows("holdout.jsonl")}
    assert len(held_out) == 50
    assert not trained & held_out


def test_every_answer_is_json_with_the_same_keys() -> None:
    for name in ("train.jsonl", "holdout.jsonl"):
        for _, _, answer in rows(name):
            assert list(json.loads(answer["content"])) == ["item", "quantity", "unit", "to", "day"]
