"""What the pages say of helm and kubectl can be done, and the values that they show render."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cloister_operator.names import MANAGED_BY_LABEL, MANAGER
from cloister_operator.store_credentials import OWNER
from cluster.control_plane.binaries import program
from support.chart import CHART, FOLDER, REGISTRY, ROOT, Object, objects, render, rendered
from support.pages import VALUES, Block, blocks, commands

INSTALLING = {"install", "upgrade", "template"}
OTHER_HELM = {"test", "uninstall", "package", "get"}
DRY = {"create"}
"""Verbs of kubectl that run without a cluster."""
OTHER_KUBECTL = {
    *("annotate", "apply", "auth", "delete", "describe", "drain", "explain", "get", "label", "logs", "patch"),
    *("port-forward", "wait"),
}
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


def test_helm_test_has_ten_minutes_more_than_what_it_runs() -> None:
    minutes = YAML(typ="safe").load(CHART / "values.yaml")["readiness"]["timeoutMinutes"]
    shown = {words[words.index("--timeout") + 1] for _, words in shell("helm") if words[1] == "test"}
    assert shown == {f"{minutes + 10}m"}


def test_what_is_left_is_deleted_by_the_labels_that_it_has() -> None:
    owners = {words[words.index("-l") + 1] for _, words in shell("kubectl") if "-l" in words}
    assert {f"{MANAGED_BY_LABEL}={MANAGER}", f"{MANAGED_BY_LABEL}={OWNER}"} <= owners
    (of_the_chart,) = [each for each in owners if "part-of" in each]
    labels = dict(each.split("=") for each in of_the_chart.split(","))
    for hook in hook_workloads():
        assert labels.items() <= hook["metadata"]["labels"].items()


def test_every_pod_without_a_policy_of_the_chart_is_named() -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    named = set(re.findall(r"^\| `(cloister-[a-z-]+)`", page, re.MULTILINE))
    assert named == {each["metadata"]["labels"]["app.kubernetes.io/name"] for each in hook_workloads()}


def hook_workloads() -> list[Object]:
    """Jobs of hooks and the pod of `helm test`, with the store."""
    hooks = [each for each in objects(rendered(FOLDER / "store")) if each["kind"] in ("Job", "Pod")]
    assert len(hooks) == 3
    return hooks


def test_every_alert_has_a_row() -> None:
    rules = (CHART / "templates" / "rules.yaml").read_text()
    page = (ROOT / "docs" / "operations.md").read_text()
    assert re.findall(r"^\| `(Cloister\w+)` \|", page, re.MULTILINE) == re.findall(r"- alert: (\w+)", rules)


@pytest.mark.parametrize(("block", "words"), shell("kubectl"), ids=str)
def test_a_kubectl_command_is_one(block: Block, words: list[str], tmp_path: Path) -> None:
    if words[1] not in DRY:
        assert words[1] in OTHER_KUBECTL, f"{block}: {words}"
        return
    for name in (word.partition("=")[2] for word in words if word.startswith("--from-file=")):
        (tmp_path / name).touch()
    command = [program("kubectl"), *words[1:], "--dry-run=client", "--output=name"]
    environment = {"HOME": str(tmp_path), "PATH": ""}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{block}: {ended.stderr}"
