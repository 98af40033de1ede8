"""The three packages of the repository, and what each says of itself."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"crds": "cloister_api", "operator": "cloister_operator", "trainer": "cloister_trainer"}


def test_the_folders_of_packages_are_no_packages_themselves() -> None:
    """An operator/__init__.py would hide Python's own module `operator` from everything started at the root."""
    for folder in PACKAGES:
        assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("folder", PACKAGES)
def test_a_package_names_its_python_and_its_licence(folder: str) -> None:
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11"
    assert project["license"] == "Apache-2.0"
    assert project["name"] == PACKAGES[folder].replace("_", "-")


@pytest.mark.parametrize("folder", PACKAGES)
def test_a_package_is_typed(folder: str) -> None:
    package = ROOT / folder / PACKAGES[folder]
    assert (package / "__init__.py").exists()
    assert (package / "py.typed").exists()


def test_the_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
