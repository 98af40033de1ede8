"""The mirror script, with programs in place of skopeo and docker that write down how they were called."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from images.image import ROOT
from support.pages import blocks

SCRIPT = ROOT / "scripts" / "images-mirror.sh"
LIST = "# ours\n{archive} operator:0.1.0\n\nother.internal/kuberay/operator:v1.6.0 kuberay-operator:v1.6.0\n"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A PATH with bash and sed alone."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "sed", "env", "cat"):
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    return folder


def install(programs: Path, name: str, loaded: str = "Loaded image: localhost/cloister/operator:dev") -> None:
    """A program that notes its arguments and, like docker, says what it loaded."""
    (programs / name).write_text(
        f'#!/usr/bin/env bash\ncat >/dev/null\necho {name} "$@" >>{programs}/calls\n'
        f'if [[ $1 == load ]]; then echo "{loaded}"; fi\n'
    )
    (programs / name).chmod(0o755)


def mirror(programs: Path, listed: str) -> subprocess.CompletedProcess[str]:
    command = [str(programs / "bash"), str(SCRIPT), "registry.internal/cloister/"]
    return subprocess.run(
        command, check=False, input=listed, capture_output=True, text=True, env={"PATH": str(programs)}
    )


def test_docker_loads_pulls_tags_and_pushes(programs: Path, tmp_path: Path) -> None:
    archive = tmp_path / "operator.tar"
    archive.touch()
    install(programs, "docker")
    done = mirror(programs, LIST.format(archive=archive))
    assert done.returncode == 0, done.stderr
    assert (programs / "calls").read_text().splitlines() == [
        f"docker load --quiet --input {archive}",
        "docker tag localhost/cloister/operator:dev registry.internal/cloister/operator:0.1.0",
        "docker push registry.internal/cloister/operator:0.1.0",
        "docker pull other.internal/kuberay/operator:v1.6.0",
        "docker tag other.internal/kuberay/operator:v1.6.0 registry.internal/cloister/kuberay-operator:v1.6.0",
        "docker push registry.internal/cloister/kuberay-operator:v1.6.0",
    ]


def test_skopeo_copies_and_comes_before_docker(programs: Path, tmp_path: Path) -> None:
    archive = tmp_path / "operator.tar"
    archive.touch()
    install(programs, "docker")
    install(programs, "skopeo")
    assert mirror(programs, LIST.format(archive=archive)).returncode == 0
    assert (programs / "calls").read_text().splitlines() == [
        f"skopeo copy docker-archive:{archive} docker://registry.internal/cloister/operator:0.1.0",
        "skopeo copy --all docker://other.internal/kuberay/operator:v1.6.0 "
        "docker://registry.internal/cloister/kuberay-operator:v1.6.0",
    ]


def test_a_last_line_without_a_newline_is_copied(programs: Path) -> None:
    install(programs, "skopeo")
    assert mirror(programs, "other.internal/a:1 a:1\nother.internal/b:1 b:1").returncode == 0
    assert (programs / "calls").read_text().splitlines() == [
        "skopeo copy --all docker://other.internal/a:1 docker://registry.internal/cloister/a:1",
        "skopeo copy --all docker://other.internal/b:1 docker://registry.internal/cloister/b:1",
    ]


def test_the_list_of_the_page_is_taken(programs: Path) -> None:
    (listed,) = [each.text for each in blocks("text") if each.text.startswith("# images.list")]
    install(programs, "skopeo")
    done = mirror(programs, listed)
    assert done.returncode == 0, done.stderr
    copied = [line.split()[-1] for line in (programs / "calls").read_text().splitlines()]
    names = [line.split()[1] for line in listed.splitlines()[1:]]
    assert copied == [f"docker://registry.internal/cloister/{name}" for name in names]


@pytest.mark.parametrize(
    ("loaded", "found"),
    [
        ("Loaded image ID: sha256:0123", "none"),
        ("Loaded image: localhost/a:1\nLoaded image: localhost/b:1", "localhost/a:1\nlocalhost/b:1"),
    ],
    ids=["no name", "two names"],
)
def test_an_archive_without_one_name_ends_in_a_sentence(
    programs: Path, tmp_path: Path, loaded: str, found: str
) -> None:
    archive = tmp_path / "operator.tar"
    archive.touch()
    install(programs, "docker", loaded)
    done = mirror(programs, f"{archive} operator:0.1.0\n")
    assert done.returncode == 1
    assert done.stderr == (
        f"{archive} must hold one image under one name; docker found: {found}. "
        "Write it again with 'docker save NAME:TAG'.\n"
    )
    assert (programs / "calls").read_text() == f"docker load --quiet --input {archive}\n"


def test_a_line_without_a_name_ends_it(programs: Path) -> None:
    install(programs, "docker")
    done = mirror(programs, "other.internal/image:1\n")
    assert done.returncode == 2
    assert "Expected a source and a name, found: other.internal/image:1" in done.stderr
    assert not (programs / "calls").exists()


def test_without_any_program_it_says_what_to_install(programs: Path) -> None:
    done = mirror(programs, "other.internal/image:1 image:1\n")
    assert done.returncode == 1
    assert "None of skopeo, docker and podman is installed" in done.stderr
