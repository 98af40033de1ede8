"""How buildah is called, with a program in its place that writes that down."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from images.buildah import PACKAGES, Buildah
from images.engine import BuildError
from images.image import ROOT, Image

IMAGE = Image("trainer")


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the subcommand of every call to buildah. Every image is there, and every call succeeds."""
    programs, log = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    for name in PACKAGES:
        # What comes first are --root, --runroot and --storage-driver, each with a value.
        (programs / name).write_text(f'#!/bin/sh\nshift 6\necho "$@" >>{log}\necho image-id\n')
        (programs / name).chmod(0o755)
    for source in ("images/trainer", "crds", "trainer", "requirements"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / source, tmp_path / "checkout" / source, ignore=ignored)
    monkeypatch.setattr("images.image.ROOT", tmp_path / "checkout")
    monkeypatch.setattr("images.buildah.ROOT", tmp_path / "checkout")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return log


def build(calls: Path, arguments: dict[str, str] | None = None) -> list[str]:
    """Build the trainer, and return the calls that were made for it."""
    calls.write_text("")
    Buildah().build(IMAGE, arguments or {}, {"ca": Path("/ca.crt")})
    return calls.read_text().splitlines()


def append(calls: Path, name: str) -> None:
    with (calls.parent / "checkout" / name).open("a") as file:
        file.write("# more\n")


def test_the_stand_in_is_never_pulled_and_another_base_is(calls: Path) -> None:
    *_, stand_in = build(calls)
    assert stand_in.startswith("bud --isolation=chroot --network=host --layers --force-rm --pull-never ")
    assert "--secret=id=ca,src=/ca.crt" in stand_in
    *_, named = build(calls, {"BASE_IMAGE": "registry.internal/python:3.11"})
    assert " --pull --build-arg=BASE_IMAGE=registry.internal/python:3.11 " in named


@pytest.mark.parametrize("name", ["requirements/torch.txt", "requirements/trainer.txt", "images/trainer/Dockerfile"])
def test_large_layers_of_before_go_when_they_cannot_be_used_again(calls: Path, name: str) -> None:
    build(calls)
    append(calls, name)
    words = [call.split()[0] for call in build(calls)]
    assert words == ["inspect", "rmi", "rmi", "bud"]
    assert "rmi --prune" in calls.read_text()


def test_layers_stay_when_only_sources_change(calls: Path) -> None:
    build(calls)
    append(calls, "trainer/cloister_trainer/steps.py")
    assert [call.split()[0] for call in build(calls)] == ["inspect", "bud"]


def test_without_a_daemon_and_without_root_it_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(BuildError, match="Neither docker nor podman answers here, and buildah needs root"):
        Buildah()
