"""What helm says after an installation: the next commands, and what the values leave open."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from support.chart import CHART, NAMESPACE, REGISTRY, RELEASE, SERVED, helm, objects

Notes = Callable[..., str]
AS_AN_OBJECT = """kind: ConfigMap
metadata: {name: notes}
data:
  notes: {{ tpl (.Files.Get "files/notes.txt") . | toJson }}
"""


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    """The notes for some values. helm shows them for a cluster only, so that a copy of the chart renders them here."""
    chart = tmp_path / "cloister"
    shutil.copytree(CHART, chart)
    (chart / "templates" / "NOTES.txt").rename(chart / "files" / "notes.txt")
    (chart / "templates" / "notes.yaml").write_text(AS_AN_OBJECT)

    def read(*changes: str) -> str:
        known = [f"--api-versions={version}" for version in SERVED]
        place = ["--namespace", NAMESPACE, "--show-only", "templates/notes.yaml"]
        values = ["--set", ",".join([REGISTRY, *changes])]
        (shown,) = objects(helm("template", RELEASE, str(chart), *place, *known, *values))
        return str(shown["data"]["notes"])

    return read


def commands(text: str) -> list[str]:
    """Lines that are indented as commands are, those that go on with a backslash joined."""
    return re.findall(r"^     (\S.*)$", text.replace("\\\n      ", ""), re.MULTILINE)


def test_the_next_commands_are_the_readiness_test_credentials_and_a_job(notes: Notes) -> None:
    said = commands(notes("readiness.timeoutMinutes=50"))
    assert said[0] == "helm test cloister -n cloister-system --logs --timeout 60m"
    assert said[1].startswith("kubectl create secret generic cloister-storage -n NAMESPACE")
    assert said[2:] == ["kubectl apply -n NAMESPACE -f job.yaml", "kubectl get ftj -n NAMESPACE -w"]


def test_the_secrets_that_the_store_makes_are_named(notes: Notes) -> None:
    values = ("store.enabled=true", "store.tenants[0].namespace=legal", "readiness.secretName=trial")
    secrets = [line for line in commands(notes(*values)) if "secret" in line]
    assert secrets == [
        "kubectl get secret cloister-storage -n legal",
        "kubectl get secret trial -n cloister-system",
    ]
    (own,) = [line for line in commands(notes("store.enabled=true", "store.existingSecret=mine")) if "secret" in line]
    assert own.startswith("kubectl create secret generic")


def test_jobs_on_several_nodes_need_a_queue_or_a_gang_scheduler(notes: Notes) -> None:
    assert "with Kueue, or with a gang scheduler" in re.sub(r"\s+", " ", notes())
    assert "gang scheduler" not in notes("prerequisites.kueue=true")
    assert "gang scheduler" not in notes("settings.profiles.default.schedulerName=volcano")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("rbac.aggregate=true", "settings.storage.peers is empty"),
        ("crd.keep=false", "helm uninstall deletes every FineTuneJob"),
        ("store.enabled=true", "one server on one volume, without replication"),
    ],
)
def test_what_the_values_leave_open_is_said(notes: Notes, change: str, sentence: str) -> None:
    assert sentence in notes(change)


def test_nothing_is_left_open_where_everything_is_said(notes: Notes) -> None:
    peer = "settings.storage.peers[0].cidr=10.0.0.0/8"
    assert "WARNING" not in notes(peer)
