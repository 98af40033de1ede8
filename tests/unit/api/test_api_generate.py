"""Generated files are fresh, and the API package stays quick to import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft4Validator

from cloister_api.events import Done, FailureSeen
from cloister_api.generate import generated_files, main
from cloister_api.job import FineTuneJobSpec
from cloister_api.reasons import FailureReason
from cloister_api.schema import field_descriptions
from cloister_api.termination import Outcome, TerminationMessage

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", generated_files())
def test_a_generated_file_is_fresh(name: str) -> None:
    assert (ROOT / name).read_text() == generated_files()[name], f"{name} is stale; run make generate"


def test_check_names_what_is_stale_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(tmp_path)]) == 0
    assert main(["--check", "--root", str(tmp_path)]) == 0
    page = tmp_path / "docs" / "reasons.md"
    page.write_text("old")
    capsys.readouterr()
    assert main(["--check", "--root", str(tmp_path)]) == 1
    assert capsys.readouterr().out == "docs/reasons.md is stale; run make generate\n"
    assert page.read_text() == "old"


def test_generating_twice_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--root", str(tmp_path)])
    capsys.readouterr()
    assert main(["--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""


def test_the_reference_has_every_field_and_the_reasons_page_every_reason() -> None:
    reference, reasons = generated_files()["docs/reference.md"], generated_files()["docs/reasons.md"]
    for field in FineTuneJobSpec.model_fields.values():
        assert f"| `spec.{field.alias}` |" in reference
    for reason in FailureReason:
        assert f"### {reason}\n\n{reason.facts.meaning} {reason.facts.action}" in reasons


def test_the_schema_of_termination_messages_takes_what_is_written() -> None:
    schema = json.loads(generated_files()["docs/schema/termination.json"])
    message = TerminationMessage(outcome=Outcome.REFUSED, reason=FailureReason.DOES_NOT_FIT, message="Use 2 GPUs.")
    Draft4Validator(schema).validate(json.loads(message.encode()))


def test_the_schema_of_events_tells_them_apart() -> None:
    validator = Draft4Validator(json.loads(generated_files()["docs/schema/event.json"]))
    head = {"cloister": "uid/1", "time": "2024-05-01T12:30:00Z"}
    failure = FailureSeen(reason=FailureReason.NODE_LOST, message="", step=1, node="")
    for event in (Done(step=1, staged_uri="s3://a/b"), failure):
        validator.validate({**head, **event.to_api()})
    assert not validator.is_valid({**head, "event": "done", "step": 1})
    assert not validator.is_valid({**head, "event": "success"})


def test_every_field_of_the_spec_has_a_string_below_it() -> None:
    assert set(field_descriptions(FineTuneJobSpec)) == set(FineTuneJobSpec.model_fields)


def test_importing_the_contracts_loads_no_yaml_and_renders_nothing() -> None:
    """A command's start-up pays for what is imported here; rendering and YAML are for those who use them."""
    script = (
        "import sys; before = set(sys.modules); "
        "import cloister_api.run, cloister_api.events, cloister_api.termination; "
        "print(' '.join(set(sys.modules) - before))"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    imported = set(printed.split())
    assert "cloister_api.job" in imported
    assert not imported & {"ruamel.yaml", "cloister_api.yaml_tree", "cloister_api.schema", "cloister_api.problems"}
