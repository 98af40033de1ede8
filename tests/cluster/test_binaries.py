"""Where the control plane's programs come from."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from cluster.control_plane import binaries, go
from cluster.control_plane.binaries import MODULES, MissingProgramError, Module, built_folder, pinned_version, program

VERSIONS = {
    "etcd": "v3.6.5",
    "kubernetes": "v1.34.4",
    "kuberay": "v1.6.0",
    "kueue": "v0.14.0",
    "kwok": "v0.7.0",
    "cyclonus": "v0.5.6",
    "kind": "v0.30.0",
    "coredns": "v1.12.4",
    "helm": "v3.19.5",
    "argo-cd": "v3.2.1",
    "flux": "v1.7.3",
    "kserve": "v0.19.0",
}


def script(path: Path, says: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return tmp_path / "cache" / "cloister" / "bin"


def test_a_missing_program_says_what_to_run(empty_cache: Path) -> None:
    with pytest.raises(MissingProgramError, match=r"kueue is not there .* run `make control-plane-binaries` once"):
        program("kueue")
    with pytest.raises(MissingProgramError, match=r"kubelet is not there .* run `make node-binaries` once"):
        program("kubelet")


def test_assets_come_first_and_what_they_lack_is_built(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path / "assets"))
    given = script(tmp_path / "assets" / "etcd")
    etcd, kueue = (next(module for module in MODULES if module.name == name) for name in ("etcd", "kueue"))
    script(built_folder(etcd) / "etcd")
    built = script(built_folder(kueue) / "kueue")
    assert program("etcd") == given
    assert program("kueue") == built


def test_helm_on_the_path_is_taken_when_it_is_of_the_pinned_minor_version(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path = script(tmp_path / "path" / "helm", "v3.19.2+g8766e71")
    monkeypatch.setenv("PATH", f"{on_path.parent}:/usr/bin:/bin")
    assert program("helm") == on_path
    script(on_path, "v4.0.1+g12500dd")
    with pytest.raises(MissingProgramError, match="helm is not there"):
        program("helm")


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_a_module_pins_its_version_and_names_its_programs(module: Module) -> None:
    folder = binaries.MODULES_FOLDER / module.name
    assert pinned_version(module) == VERSIONS[module.name]
    assert f"{module.path} {pinned_version(module)} h1:" in (folder / "go.sum").read_text()
    imported = set(re.findall(r'_ "([^"]+)"', (folder / "tools.go").read_text()))
    packages = (module.programs | module.node_programs | module.wanted_programs).values()
    assert imported == {"/".join(filter(None, (module.path, package))) for package in packages}


def test_another_go_sum_is_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kwok = next(module for module in MODULES if module.name == "kwok")
    before = built_folder(kwok)
    shutil.copytree(binaries.MODULES_FOLDER / "kwok", tmp_path / "kwok")
    with (tmp_path / "kwok" / "go.sum").open("a") as file:
        file.write("\n")
    monkeypatch.setattr(binaries, "MODULES_FOLDER", tmp_path)
    assert built_folder(kwok).parent == before.parent
    assert built_folder(kwok) != before


def test_the_go_on_the_path_is_used_when_it_is_new_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path = script(tmp_path / "path" / "go", "go version go1.30.1 linux/amd64")
    packaged = script(tmp_path / "package" / "go", "go version go1.25 linux/amd64")
    monkeypatch.setattr(go, "_on_path", lambda: on_path)
    monkeypatch.setattr(go, "_in_package", lambda: packaged)
    assert go.go_command() == on_path
    script(on_path, "go version go1.24.9 linux/amd64")
    assert go.go_command() == packaged
    monkeypatch.setattr(go, "_in_package", lambda: None)
    with pytest.raises(RuntimeError, match=r"needs Go 1\.25 or newer; found .*go is 1\.24\. Install one, or run"):
        go.go_command()
