"""The three packages of the repository, and what each says of itself."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
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


@pytest.mark.parametrize("folder", PACKAGES)
def test_a_package_declares_every_package_that_it_imports(folder: str) -> None:
    distributions = packages_distributions()
    needed = {normal(distributions[name][0]) for name in imported(folder)}
    dependencies = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]["dependencies"]
    assert needed - {normal(dependency) for dependency in dependencies} == set()


@pytest.mark.parametrize(("folder", "locked"), [("crds", "api"), ("operator", "operator"), ("trainer", "trainer")])
def test_what_a_package_declares_is_locked(folder: str, locked: str) -> None:
    dependencies = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]["dependencies"]
    declared = {normal(dependency) for dependency in dependencies} - {"cloister-api"}
    files = [ROOT / "requirements" / f"{name}.in" for name in {"api", locked}]
    assert declared <= {normal(line) for file in files for line in file.read_text().splitlines() if line[0] != "-"}


def test_the_api_package_stands_on_pydantic_and_a_yaml_loader_only() -> None:
    assert imported("crds") <= {"pydantic", "pydantic_core", "ruamel", "annotated_types"}


def imported(folder: str) -> set[str]:
    """Top-level names of what the package imports when it runs, other than Python's own and the package itself."""
    files = sorted((ROOT / folder / PACKAGES[folder]).rglob("*.py"))
    assert files
    names = {name.partition(".")[0] for file in files for name in imports_in(ast.parse(file.read_text()))}
    return names - sys.stdlib_module_names - {PACKAGES[folder]}


def imports_in(node: ast.AST) -> Iterator[str]:
    """Modules imported anywhere below the node, except below `if TYPE_CHECKING:`."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        yield node.module
    for child in ast.iter_child_nodes(node):
        yield from imports_in(child)


def normal(requirement: str) -> str:
    """The name in a requirement, as package indexes compare it."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def test_the_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
