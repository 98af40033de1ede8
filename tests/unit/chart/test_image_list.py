"""The list of images in docs/install.md: what the chart, the operator and the prerequisites pull, in their versions."""

from __future__ import annotations

import re
from typing import Any

from ruamel.yaml import YAML

from cloister_api.yaml_tree import read_documents
from cluster.control_plane.binaries import MODULES, pinned_version
from support.chart import CHART, FOLDER, ROOT, cases, objects, rendered
from support.operator_golden import cases as jobs
from support.pages import blocks

REGISTRIES = ("registry.internal:5000/mirror/", "registry.internal/")
"""Of the golden values, the longest first."""


def listed() -> dict[str, str]:
    """The sources by their names in the registry."""
    (block,) = [each for each in blocks("text") if each.text.startswith("# images.list")]
    lines = [line.split() for line in block.text.splitlines() if not line.startswith("#")]
    return {name: source for source, name in lines}


def images_in(value: Any) -> set[str]:
    """Every image that an object names, in containers of any kind and in settings."""
    if isinstance(value, dict):
        here = {found for key, found in value.items() if key == "image" and isinstance(found, str)}
        return here.union(*map(images_in, value.values()))
    return set().union(*map(images_in, value)) if isinstance(value, list) else set()


def repository(image: str) -> str:
    """Without registry, tag and digest."""
    registry = next(each for each in REGISTRIES if image.startswith(each))
    return re.split(r"[:@]", image.removeprefix(registry))[0]


def test_the_chart_and_the_jobs_pull_what_is_listed_and_nothing_else() -> None:
    pulled = {image for case in cases() for found in objects(rendered(case)) for image in images_in(found)}
    pulled |= {
        image
        for job in jobs()
        for document in read_documents((job / "children.yaml").read_text())
        for image in images_in(document.value)
    }
    settings = [
        data["settings.yaml"]
        for found in objects(rendered(FOLDER / "default"))
        if "settings.yaml" in (data := found.get("data") or {})
    ]
    pulled |= {YAML(typ="safe").load(text)["images"]["trainer"] for text in settings}
    assert len(settings) == 1
    ours = {name.partition(":")[0] for name in listed() if name.startswith("cloister/")}
    assert {repository(image) for image in pulled} == ours


def test_our_images_have_the_chart_s_version() -> None:
    version = YAML(typ="safe").load(CHART / "Chart.yaml")["appVersion"]
    ours = {name: source for name, source in listed().items() if name.startswith("cloister/")}
    assert {name.partition(":")[2] for name in ours} == {version}
    for name, source in ours.items():
        image = name.partition(":")[0].removeprefix("cloister/")
        assert source == f".build/images/{image}.tar"
        assert (ROOT / "images" / image / "Dockerfile").is_file()


def test_the_prerequisites_have_the_versions_that_are_tested() -> None:
    tested = {module.name: pinned_version(module) for module in MODULES if module.name in ("kuberay", "kueue")}
    others = {name for name in listed() if not name.startswith("cloister/")}
    assert others == {f"kuberay/operator:{tested['kuberay']}", f"kueue/kueue:{tested['kueue']}"}


def test_every_image_has_a_row_that_says_when() -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    first_cells = re.findall(r"^\| (`[^|]*)\|", page, re.MULTILINE)
    named = {name for cell in first_cells for name in re.findall(r"`([a-z]+/[a-z]+)`", cell)}
    assert {name.partition(":")[0] for name in listed()} == named
