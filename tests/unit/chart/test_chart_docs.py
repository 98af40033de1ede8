"""What the pages say of helm and kubectl can be done, and the values that they show render."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cluster.control_plane.binaries import program
from support.chart import REGISTRY, objects, render
from support.pages import VALUES, Block, blocks, commands

INSTALLING = {"install", "upgrade", "template"}
OTHER_HELM = {"test", "uninstall", "package", "get"}
DRY = {"create"}
"""Verbs of kubectl that run without a cluster."""
OTHER_KUBECTL = {"apply", "get", "describe", "delete", "label", "port-forward", "logs", "annotate"}
FLAGS_OF_A_CLUSTER = {"-n", "--namespace", "--timeout"}
CA = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


def shell(program: str) -> list[tuple[Block, list[str]]]:
    return [(block, words) for block in blocks("sh") for words in commands(block) if words[0] == program]


def values_before(block: Block) -> str:
    """The values that the page showed last before the block."""
    shown = [each for each in blocks("yaml") if each.page == block.page and each.text.startswith(VALUES)]
    before = [each for each in shown if each.line < block.line]
    return before[-1].text if before else ""


def rendering(words: list[str], values: Path, ca: Path) -> list[str]:
    """Arguments of `helm template` for a command that installs, its files replaced by these."""
    arguments: list[str] = []
    rest = iter(words[4:])
    for word in rest:
        if word in FLAGS_OF_A_CLUSTER:
            next(rest)
        else:
            arguments.append(word.replace("values.yaml", str(values)).replace("ca.crt", str(ca)))
    return arguments


@pytest.mark.parametrize("block", [each for each in blocks("yaml") if each.text.startswith(VALUES)], ids=str)
def test_values_on_a_page_render(block: Block, tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_text(block.text)
    assert objects(render("--values", str(tmp_path / "values.yaml")))


@pytest.mark.parametrize(("block", "words"), shell("helm"), ids=str)
def test_a_helm_command_renders_with_the_values_before_it(block: Block, words: list[str], tmp_path: Path) -> None:
    if words[1] not in INSTALLING:
        assert words[1] in OTHER_HELM, f"{block}: {words}"
        return
    assert words[2:4] == ["cloister", "charts/cloister"], f"{block}: {words}"
    values, ca = tmp_path / "values.yaml", tmp_path / "ca.crt"
    values.write_text(values_before(block))
    ca.write_text(CA)
    assert objects(render("--set", REGISTRY, *rendering(words, values, ca)))


@pytest.mark.parametrize(("block", "words"), shell("kubectl"), ids=str)
def test_a_kubectl_command_is_one(block: Block, words: list[str], tmp_path: Path) -> None:
    if words[1] not in DRY:
        assert words[1] in OTHER_KUBECTL, f"{block}: {words}"
        return
    command = [program("kubectl"), *words[1:], "--dry-run=client", "--output=name"]
    ended = subprocess.run(
        command, env={"HOME": str(tmp_path), "PATH": ""}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, f"{block}: {ended.stderr}"
