"""Every manifest under examples/ loads and is decided upon; the data are what their scripts write; the plans fit."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from cloister_api.loading import load_job
from cloister_operator.settings import Settings
from support.chart import named, objects, render
from support.examples import CHART_VALUES, EXAMPLES, Object, Shown, example_settings, jobs, of_kind, shown_jobs
from support.operator_golden import journey
from support.operator_world import World

QUICKSTART = EXAMPLES / "01-quickstart"
CHILDREN = ["NetworkPolicy", "NetworkPolicy", "ConfigMap", "Job", "RayJob", "Job"]
LOCAL = "file://"
"""Such a job is for one machine."""


def any_settings() -> Settings:
    """The same, for jobs in pages, which name places of every kind."""
    allowed = {"uriPrefixes": ["s3://", "pvc://"], "secretNames": ["*"], "claims": ["*"]}
    return Settings.model_validate(example_settings().to_api() | {"allowed": allowed})


def rows(name: str) -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in (QUICKSTART / name).read_text().splitlines()]


@pytest.mark.parametrize("shown", jobs(), ids=str)
def test_every_example_loads(shown: Shown) -> None:
    assert load_job(json.dumps(shown.object), shown.place).metadata.namespace


@pytest.mark.parametrize("shown", jobs(), ids=str)
def test_every_example_gets_its_children_with_the_settings_beside_it(shown: Shown) -> None:
    assert made(shown, example_settings()) == CHILDREN


@pytest.mark.parametrize("shown", [each for each in shown_jobs() if LOCAL not in json.dumps(each.object)], ids=str)
def test_every_job_in_a_page_gets_its_children(shown: Shown) -> None:
    assert made(shown, any_settings()) == CHILDREN


def made(shown: Shown, admin: Settings) -> list[str]:
    """Kinds of the job's children in order; what holds it back is taken away once it was reached."""
    world = World(admin=admin, job={**shown.object, "metadata": {"namespace": "legal"} | shown.object["metadata"]})
    found = journey(world)
    assert world.status.phase != "Failed", world.status.message
    if world.status.phase in ("Held", "Suspended"):
        world.change("hold", "None")
        world.change("suspend", False)
        found += journey(world)
    return [each["kind"] for each in found]


def test_helm_test_passes_the_examples_policy_and_settings() -> None:
    """Its account is the one that the policy lets through, and its place one that the settings allow."""
    chart = objects(render("--values", str(CHART_VALUES)))
    account = named(chart, "ServiceAccount", "cloister-readiness")["metadata"]
    (policy,) = of_kind("ValidatingAdmissionPolicy", "09-admission-policy")
    through = [each["expression"] for each in policy.object["spec"]["matchConditions"]]
    user = f"system:serviceaccount:{account.get('namespace', 'cloister-system')}:{account['name']}"
    assert f"request.userInfo.username != '{user}'" in through
    (job,) = [each for each in plans(chart) if each["kind"] == "FineTuneJob"]
    assert made(Shown("helm test", job), example_settings()) == CHILDREN


def plans(chart: list[Object]) -> list[Object]:
    """What `helm test` makes."""
    plan = json.loads(named(chart, "ConfigMap", "cloister-readiness")["data"]["plan.json"])
    return [each for each in plan.values() if isinstance(each, dict) and "kind" in each]


def test_every_folder_is_in_the_overview_and_says_what_it_is() -> None:
    overview = (EXAMPLES / "README.md").read_text()
    folders = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())
    assert [name[:2] for name in folders] == [f"{number:02}" for number in range(1, len(folders) + 1)]
    for folder in folders:
        assert f"({folder})" in overview
        assert (EXAMPLES / folder / "README.md").read_text().startswith("# ")


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*/make_data.py")), ids=lambda path: path.parent.name)
def test_the_data_are_what_the_script_writes(script: Path, tmp_path: Path) -> None:
    (tmp_path / script.name).write_text(script.read_text())
    runpy.run_path(str(tmp_path / script.name), run_name="__main__")
    written = sorted(path.name for path in tmp_path.glob("*.jsonl"))
    assert written == sorted(path.name for path in script.parent.glob("*.jsonl"))
    for name in written:
        assert (tmp_path / name).read_bytes() == (script.parent / name).read_bytes()


def test_no_held_out_order_is_trained_on() -> None:
    trained = {messages[1]["content"] for messages in rows("train.jsonl")}
    held_out = {messages[1]["content"] for messages in rows("holdout.jsonl")}
    assert len(held_out) == 50
    assert not trained & held_out


def test_every_answer_is_json_with_the_same_keys() -> None:
    for name in ("train.jsonl", "holdout.jsonl"):
        for _, _, answer in rows(name):
            assert list(json.loads(answer["content"])) == ["item", "quantity", "unit", "to", "day"]


def test_the_jobs_of_a_sweep_differ_in_what_is_swept_alone() -> None:
    swept = [each.object for each in of_kind("FineTuneJob", "10-sweep")]
    assert len({job["spec"]["training"].pop("learningRate") for job in swept}) == len(swept) == 3
    assert len({job["spec"].pop("output")["uri"] for job in swept}) == 3
    assert len({job["metadata"].pop("name") for job in swept}) == 3
    assert swept[0]["spec"]["dataset"]["cacheUri"]
    assert all(job == swept[0] for job in swept)
