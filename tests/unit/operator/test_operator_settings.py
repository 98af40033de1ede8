"""The administrator's settings: read from a file, refused in sentences with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister_api.yaml_tree import read_documents
from cloister_operator.settings import Settings
from cloister_operator.settings_file import SettingsError, load_configuration, parse_settings
from cloister_operator.settings_page import PAGE, render_settings
from support.operator_values import SETTINGS_YAML
from support.operator_world import World

ROOT = Path(__file__).resolve().parents[3]

WRONG = [
    ("profilez: {}", "settings.yaml:1: profilez: unknown field; did you mean profiles?"),
    ("limits: {workers: many}", "limits.workers: expected a whole number"),
    ("patience: {pods: 1s}", "patience.pods: expected 1m to 720h, found 1s"),
    ("patience: {pods: soon}", "a length of time such as 90s"),
    ("allowed: {uriPrefixes: [/data]}", "allowed.uriPrefixes[0]: expected a prefix"),
    ("allowed: {egress: [Closed]}", "expected one of Restricted, Open"),
    ("profiles: {a: {env: {a b: c}}}", "profiles.a.env: expected names of environment variables"),
    ("profiles: {a: {gpuMemory: 80}}", "put it in quotes"),
]


@pytest.mark.parametrize(("line", "sentence"), WRONG)
def test_a_wrong_setting_is_named_with_file_and_line(line: str, sentence: str) -> None:
    text = line + SETTINGS_YAML.replace("profiles:\n  default: {gpuMemory: 80Gi}\n", "")
    with pytest.raises(SettingsError) as refused:
        parse_settings(text, "settings.yaml")
    assert sentence in str(refused.value)
    assert "settings.yaml:1: " in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("trainer: registry.internal/cloister/trainer@sha256:0123", "", "images.trainer: missing"),
        ("registry.internal/cloister/trainer@sha256:0123", "$(id)", "images.trainer: expected an image"),
        ("ports: [8333]", "ports: [0]", "expected a whole number from 1 to 65,535"),
        ("podLabels: {app: store}", "cidr: 10.0.0.0/8", "expected either cidr, or namespaceLabels"),
        ("controlAddress: control.cloister-system.svc:8444", "controlAddress: everywhere", "expected host:port"),
        ("controlAddress: control.cloister-system.svc:8444", "", "network.controlAddress: missing"),
        ("endpoint: http://store.storage.svc:8333", "ca: /etc/ca.crt", "certificates in PEM form"),
        ("endpoint: http://store.storage.svc:8333", "runUri: /data", "storage.runUri: expected a place"),
    ],
)
def test_what_a_schema_cannot_say_is_checked_too(old: str, new: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parse_settings(SETTINGS_YAML.replace(old, new), "settings.yaml")
    assert sentence in str(refused.value)


@pytest.mark.parametrize("endpoint", ["store.storage.svc:8333", "s3://models", "https://", "http:///path", '""'])
def test_an_endpoint_is_a_url(endpoint: str) -> None:
    text = SETTINGS_YAML.replace("http://store.storage.svc:8333", endpoint)
    with pytest.raises(SettingsError, match=r"storage\.endpoint: expected https://host:port"):
        parse_settings(text, "settings.yaml")


def test_the_environment_names_the_file_and_the_namespace(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(SETTINGS_YAML)
    found = load_configuration({"CLOISTER_SETTINGS": str(path), "CLOISTER_NAMESPACE": "legal"})
    assert (found.namespace, found.settings.profiles["default"].gpu_memory) == ("legal", "80Gi")
    assert load_configuration({"CLOISTER_SETTINGS": str(path)}).namespace is None


def test_a_file_that_is_not_there_says_how_to_name_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="CLOISTER_SETTINGS"):
        load_configuration({"CLOISTER_SETTINGS": str(tmp_path / "none.yaml")})


def test_the_settings_that_are_shipped_can_be_used() -> None:
    path = Path(__file__).resolve().parents[3] / "operator/manifests/settings.yaml"
    assert parse_settings(path.read_text(), str(path)).profiles["default"].gpu_memory == "80Gi"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*/job.yaml")), ids=lambda path: path.parent.name)
def test_every_example_is_accepted_with_the_settings_to_start_from(path: Path) -> None:
    settings = ROOT / "operator" / "manifests" / "settings.yaml"
    (job,) = read_documents(path.read_text())
    world = World(admin=parse_settings(settings.read_text(), str(settings)), job=job.value)
    status = world.settle()
    assert (status.phase, status.message) == ("Preparing", None)


def test_the_page_has_every_setting_and_is_fresh() -> None:
    page = render_settings()
    assert (ROOT / PAGE).read_text() == page, f"{PAGE} is stale; run make generate"
    for field in Settings.model_fields.values():
        assert f"| `{field.alias}` |" in page
    assert "`profiles.<name>.tolerations[].effect`" in page
