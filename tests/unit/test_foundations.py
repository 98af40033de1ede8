"""What everything else stands on: the folders, the locks, the Makefile."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"
LOCKS = ("dev", "operator", "trainer", "model", "uv")
PIN = re.compile(r"^([a-z0-9][a-z0-9._-]*)==([^\s;\\]+)", re.MULTILINE)


def pins(name: str) -> dict[str, str]:
    return dict(PIN.findall((REQUIREMENTS / f"{name}.txt").read_text()))


def asked_for(name: str) -> set[str]:
    """The packages that an .in file names, in files that it includes too."""
    packages: set[str] = set()
    for line in (REQUIREMENTS / f"{name}.in").read_text().splitlines():
        if line.startswith("-r "):
            packages |= asked_for(line.removeprefix("-r ").removesuffix(".in"))
        elif line:
            packages.add(re.split(r"[^A-Za-z0-9._-]", line)[0].lower().replace(".", "-"))
    return packages


def test_the_operator_folder_does_not_hide_the_standard_library() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_what_was_asked_for_with_hashes(name: str) -> None:
    text = (REQUIREMENTS / f"{name}.txt").read_text()
    assert asked_for(name) <= set(pins(name))
    for entry in re.split(r"\n(?=[a-z0-9])", text)[1:]:
        assert "--hash=sha256:" in entry, entry.splitlines()[0]
    assert "://" not in text


@pytest.mark.parametrize("name", ["operator", "trainer"])
def test_images_get_the_versions_that_are_tested(name: str) -> None:
    tested = pins("dev")
    assert {package: tested[package] for package in pins(name)} == pins(name)


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^\.PHONY: (\S+)$", makefile, re.MULTILINE)
    assert {"setup", "format", "lint", "typecheck", "generate", "verify", "test", "soak", "quickstart"} <= set(targets)
    for target in targets:
        assert re.search(rf"^  {target} +\S", listed, re.MULTILINE), f"{target} has no ## sentence"


def test_ci_runs_the_readme_s_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "\nmake test\n" in script.read_text()
    assert "make test" in (ROOT / "README.md").read_text()
