"""What every Dockerfile promises: one base, hashed packages, an ordinary user, nothing from anywhere else."""

from __future__ import annotations

import re
from fnmatch import fnmatch

import pytest

from images.checks import CHECKS, INSIDE
from images.image import NAMES, ROOT, Image
from images.stand_in import STAND_IN

IMAGES = [Image(name) for name in NAMES]
each_image = pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
HOST = re.compile(r"\b[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}(?=[/:])|https?://\S+")
FETCHES = ("apt-get", "curl", "wget", "git", "ADD")
PIN = re.compile(r"^([\w.\[\]-]+==\S+)(?: ;.*)? \\\n((?:    --hash=\S+(?: \\)?\n)+)", re.MULTILINE)


def instructions(image: Image) -> list[str]:
    """Each instruction in a line of its own, without comments."""
    text = re.sub(r"^#.*\n", "", image.dockerfile.read_text(), flags=re.MULTILINE)
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def final_stage(image: Image) -> list[str]:
    lines = instructions(image)
    start = max(number for number, line in enumerate(lines) if line.startswith("FROM "))
    return lines[start + 1 :]


def pins(lock: str) -> dict[str, str]:
    """Every `name==version` of a lock with its hashes."""
    found = {pin: " ".join(hashes.split()) for pin, hashes in PIN.findall((ROOT / "requirements" / lock).read_text())}
    assert found
    return found


def test_every_dockerfile_is_built_and_tried() -> None:
    assert {path.parent.name for path in ROOT.glob("images/*/Dockerfile")} == set(NAMES) == set(CHECKS)
    makefile = (ROOT / "Makefile").read_text()
    assert f"IMAGES ?= {' '.join(NAMES)}\n" in makefile


def test_every_script_for_the_inside_is_there() -> None:
    named = {check.script for checks in CHECKS.values() for check in checks if check.script}
    assert named | {"inventory.py"} == {path.name for path in INSIDE.glob("*.py")}


@each_image
def test_the_only_image_named_is_the_base(image: Image) -> None:
    lines = instructions(image)
    assert lines[0] == f"ARG BASE_IMAGE={STAND_IN}"
    stages = [line.split()[1:] for line in lines if line.startswith("FROM ")]
    names = {words[2] for words in stages if len(words) == 3}
    assert {words[0] for words in stages} <= {"${BASE_IMAGE}", *names}
    assert stages[-1] == ["${BASE_IMAGE}"], "the last stage is the base alone"
    assert "latest" not in image.dockerfile.read_text()


@each_image
def test_no_address_but_the_bases_registry_is_named(image: Image) -> None:
    assert set(HOST.findall("\n".join(instructions(image)))) == {"docker.io"}


@each_image
def test_nothing_is_fetched_but_packages_with_hashes(image: Image) -> None:
    for line in instructions(image):
        assert not set(FETCHES) & set(line.split()), line
        if "pip sync" in line or ("pip install" in line and " -r " in line):
            assert "--require-hashes" in line, line
        elif "pip install" in line:
            assert "--no-deps" in line and "--build-constraints" in line, line
            assert re.search(r"( /src/\w+)+$", line), f"only this repository's packages have no hashes: {line}"


@each_image
def test_it_runs_as_an_ordinary_user_who_owns_nothing(image: Image) -> None:
    lines = final_stage(image)
    users = [number for number, line in enumerate(lines) if line.startswith("USER ")]
    assert [lines[number] for number in users] == ["USER 65532:65532"]
    assert not [line for line in lines[users[0] :] if line.startswith(("RUN ", "COPY "))]
    assert "--chown" not in image.dockerfile.read_text()


@each_image
def test_its_labels_say_what_it_is(image: Image) -> None:
    (labels,) = [line for line in final_stage(image) if line.startswith("LABEL ")]
    for key in ("title", "description", "version", "revision", "source", "licenses"):
        assert re.search(rf'org\.opencontainers\.image\.{key}="[^"]+"', labels), key


@each_image
def test_what_it_copies_is_there_and_not_ignored(image: Image) -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert image.copied()
    for source in image.copied():
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) or pattern.startswith(f"{source}/") for pattern in allowed), source


@each_image
def test_programs_write_below_tmp_alone(image: Image) -> None:
    (variables,) = [line for line in final_stage(image) if line.startswith("ENV ")]
    assert " HOME=/tmp " in f"{variables} "
    assert "PATH=/opt/venv/bin:" in variables


def test_the_trainers_packages_are_copied_from_no_other_stage() -> None:
    copied = [line for line in final_stage(Image("trainer")) if line.startswith("COPY --from")]
    assert copied == ["COPY --from=packages /packages /opt/venv"], "a copied torch is written three times"


def test_torch_has_a_layer_of_its_own_below_the_rest() -> None:
    lines = final_stage(Image("trainer"))
    order = [re.findall(r"requirements/(\w+)\.txt", line) for line in lines if "requirements/" in line]
    assert order == [["build", "torch"], ["build", "torch"], ["trainer"], ["build", "build", "trainer"]]
    torch, trainer = pins("torch.txt"), pins("trainer.txt")
    assert torch.items() <= trainer.items(), "the layer below has what trainer.txt replaces: run `make lock`"
    assert any(pin.startswith("torch==") for pin in torch)


def test_locks_of_images_agree_with_those_that_tests_use() -> None:
    dev = pins("dev.txt")
    assert pins("store.txt").items() <= dev.items()
    assert pins("uv.txt").items() <= pins("build.txt").items()
