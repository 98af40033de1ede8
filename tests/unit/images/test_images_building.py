"""What decides whether an image is built again, with what it is built, and what is listed in it."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from images.__main__ import build_arguments, secrets
from images.container_spec import container_spec
from images.engine import answering
from images.image import NAMES, ROOT, Image
from images.sbom import sbom


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the operator's image is built from, in place of this checkout."""
    for source in ("images/operator", "crds", "operator"):
        shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    (tmp_path / "requirements").mkdir()
    for name in ("requirements/build.txt", "requirements/operator.txt", "LICENSE", ".dockerignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr("images.image.ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name", ["operator/cloister_operator/store.py", "requirements/build.txt", "images/operator/Dockerfile", "LICENSE"]
)
def test_a_changed_input_changes_the_fingerprint(checkout: Path, name: str) -> None:
    before = Image("operator").fingerprint()
    assert Image("operator").fingerprint() == before
    with (checkout / name).open("a") as file:
        file.write("# more\n")
    assert Image("operator").fingerprint() != before


def test_what_is_not_copied_changes_nothing(checkout: Path) -> None:
    before = Image("operator").fingerprint()
    cache = checkout / "crds" / "cloister_api" / "__pycache__"
    cache.mkdir()
    (cache / "job.cpython-311.pyc").write_bytes(b"bytecode")
    (checkout / "requirements" / "trainer.txt").write_text("torch")
    assert Image("operator").fingerprint() == before


def test_arguments_and_a_new_file_change_the_fingerprint(checkout: Path) -> None:
    before = Image("operator").fingerprint("docker")
    assert Image("operator").fingerprint("buildah") != before
    (checkout / "operator" / "cloister_operator" / "new.py").touch()
    assert Image("operator").fingerprint("docker") != before


def test_a_checkout_without_git_has_an_unknown_revision(checkout: Path) -> None:
    assert not (checkout / ".git").exists()
    assert Image("operator").revision() == "unknown"


def test_the_revision_is_the_last_commit_of_the_inputs(checkout: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.invalid"]
        command = ["git", "-C", str(checkout), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "all")
    first = git("rev-parse", "HEAD")
    (checkout / "README.md").touch()
    git("add", ".")
    git("commit", "--quiet", "--message", "not an input")
    assert Image("operator").revision() == first
    (checkout / "crds" / "cloister_api" / "job.py").write_text("")
    assert Image("operator").revision() == f"{first}-dirty"


def test_base_and_source_come_from_the_environment() -> None:
    environment = {"BASE_IMAGE": "registry.internal/python@sha256:00", "SOURCE": "", "OTHER": "x"}
    arguments = build_arguments(Image("store"), environment)
    assert arguments["BASE_IMAGE"] == "registry.internal/python@sha256:00"
    assert set(arguments) == {"VERSION", "REVISION", "BASE_IMAGE"}


def test_secrets_are_files_for_the_time_of_the_build(tmp_path: Path) -> None:
    certificates = tmp_path / "ca.crt"
    certificates.touch()
    index = {"PIP_INDEX_URL": "http://mirror.internal/simple", "UV_DEFAULT_INDEX": "http://mirror.internal/simple"}
    with secrets({"SSL_CERT_FILE": str(certificates), **index}) as given:
        assert given["ca"] == certificates
        assert given["pip"].read_text() == "[global]\nindex-url = http://mirror.internal/simple\n"
        assert 'url = "http://mirror.internal/simple"' in given["uv"].read_text()
    assert not given["pip"].exists() and not given["uv"].exists()
    with secrets({"SSL_CERT_FILE": str(tmp_path / "absent")}) as given:
        assert given == {}


def test_an_engine_is_taken_when_its_daemon_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert answering() is None
    for program, code in (("docker", 1), ("podman", 0)):
        (tmp_path / program).write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / program).chmod(stat.S_IRWXU)
    assert answering() == "podman", "docker is a client without a daemon here"


def test_a_container_is_confined_like_a_pod() -> None:
    spec = container_spec(Path("/root"), ["weed", "version"], ["HOME=/tmp"], {Path("/settings"): "/etc/settings"})
    assert spec["root"] == {"path": "/root", "readonly": True}
    assert spec["process"]["user"] == {"uid": 65532, "gid": 65532}
    assert spec["process"]["noNewPrivileges"] is True
    assert not any(spec["process"]["capabilities"].values())
    assert {"type": "network"} in spec["linux"]["namespaces"], "a new one, without a path, has loopback alone"
    (bind,) = [mount for mount in spec["mounts"] if mount["type"] == "bind"]
    assert bind == {"destination": "/etc/settings", "type": "bind", "source": "/settings", "options": ["bind", "ro"]}


def test_the_list_names_packages_as_scanners_know_them() -> None:
    python = [
        {"name": "Ruamel.YAML_clib", "version": "1.0+local", "licence": "MIT"},
        {"name": "whole-text", "version": "2", "licence": "Permission is hereby granted " * 9},
    ]
    debian = [{"name": "libstdc++6", "version": "12.2.0-14", "architecture": "amd64"}]
    document = sbom(Image("operator"), "sha256:00", python, debian)
    components = {component["purl"]: component for component in document["components"]}
    assert list(components) == [
        "pkg:deb/debian/libstdc%2B%2B6@12.2.0-14?arch=amd64",
        "pkg:pypi/ruamel-yaml-clib@1.0%2Blocal",
        "pkg:pypi/whole-text@2",
    ]
    assert components["pkg:pypi/ruamel-yaml-clib@1.0%2Blocal"]["licenses"] == [{"license": {"name": "MIT"}}]
    assert "licenses" not in components["pkg:pypi/whole-text@2"]
    assert document == sbom(Image("operator"), "sha256:00", python, debian), "the same image, the same document"
    assert json.dumps(document) != json.dumps(sbom(Image("operator"), "sha256:01", python, debian))


def test_every_image_has_a_tag_of_this_machine() -> None:
    assert {Image(name).tag for name in NAMES} == {f"localhost/cloister/{name}:dev" for name in NAMES}
