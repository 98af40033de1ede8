"""What the pages say can be done: YAML loads, commands exist, links lead somewhere, named files are there."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from ruamel.yaml import YAML

from cloister_api.loading import load_job
from cloister_operator.__main__ import main as operator_main
from cloister_trainer.cli.main import build_parser
from support.examples import Shown, shown_jobs
from support.pages import PAGES, ROOT, VALUES, Block, blocks, commands

LINK = re.compile(r"\]\(([^)\s]+)\)")
SHELL_WORDS = {"cd", "export", "git"}
CHART_WORDS = {"helm", "kubectl"}
"""Run by tests/unit/chart/test_chart_docs.py, which also renders the values."""
OUTSIDE = {"hf", "aws", "openssl", "curl", "vllm", "llama-server"}
"""Programs of others, shown and not run."""


def parses(arguments: list[str]) -> bool:
    try:
        build_parser().parse_args(arguments)
    except SystemExit as end:
        return end.code == 0
    return True


def make_targets() -> set[str]:
    return set(re.findall(r"^\.PHONY: (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_fenced_block_is_of_a_language_that_these_tests_know() -> None:
    for page in PAGES:
        fences = re.findall(r"^```(.*)$", page.read_text(), re.MULTILINE)
        assert len(fences) % 2 == 0, f"{page}: a fence is not closed"
        assert set(fences[::2]) <= {"yaml", "sh", "json", "python", "text"}, page


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_every_json_block_is_json(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_every_python_block_compiles(block: Block) -> None:
    """tests/trainer/test_grok.py runs the one of Grok-1's page, and takes its config.json."""
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("block", [each for each in blocks("yaml") if not each.text.startswith(VALUES)], ids=str)
def test_every_yaml_block_is_a_job_or_part_of_one(block: Block) -> None:
    document = YAML(typ="safe").load(block.text)
    assert "apiVersion" in document or set(document) <= {"metadata", "spec"}, f"{block}: a part starts at spec"


@pytest.mark.parametrize("shown", shown_jobs(), ids=str)
def test_every_job_in_a_block_loads(shown: Shown) -> None:
    load_job(json.dumps(shown.object), shown.place)


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_every_command_exists(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in commands(block):
        match words:
            case ["make", *arguments]:
                targets = {word for word in arguments if "=" not in word}
                assert targets <= make_targets(), f"{block}: {words}"
            case ["cloister", *arguments]:
                assert parses(arguments), f"{block}: {words}"
            case ["python", script, *_] if script.startswith("llama.cpp/"):
                pass  # tests/unit/test_serving_examples.py looks at what it is told
            case [".venv/bin/python" | "python", script, *_] if script.endswith(".py"):
                assert (ROOT / script).is_file(), f"{block}: {words}"
            case [script, *_] if script.startswith("scripts/"):
                assert os.access(ROOT / script, os.X_OK), f"{block}: {words}"
            case ["python", "-m", "cloister_operator", *arguments]:
                assert "--check" in arguments and operator_main(arguments) == 0, f"{block}: {words}"
            case [word, *_]:
                assert word in SHELL_WORDS | CHART_WORDS | OUTSIDE, f"{block}: nothing tests the command {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if "://" not in target:
            path, _, anchor = unquote(target).partition("#")
            led_to = page.parent / path if path else page
            assert led_to.exists(), f"{page.relative_to(ROOT)} links to {target}"
            assert not anchor or anchor in anchors(led_to), f"{page.relative_to(ROOT)} links to {target}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_architecture_names_files_that_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|") and not set(line) <= set("|- ")]
    named = [path for row in rows for path in re.findall(r"`([\w./-]+\.\w+|[\w./-]+/)`", row)]
    assert len(named) >= 40
    for path in named:
        assert (ROOT / path).exists(), f"ARCHITECTURE.md names {path}"


def test_the_architecture_knows_every_package() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for package in ("crds/cloister_api", "trainer/cloister_trainer"):
        for init in (ROOT / package).rglob("__init__.py"):
            assert f"`{init.parent.relative_to(ROOT)}/" in text, f"ARCHITECTURE.md has no row for {init.parent}"
