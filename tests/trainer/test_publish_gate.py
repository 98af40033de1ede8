"""evaluation.gate: a weak adapter stays staged, and the numbers are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.publish.main import publish
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import Storage, open_storage
from support.staged_run import manifest_of, published_folder, stage


@pytest.fixture
def storage() -> Storage:
    return open_storage(environ={})


def test_the_gate_keeps_a_weak_adapter_staged(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    gate = {"gate": {"minRelativeImprovement": 0.6}}
    staged = stage(tmp_path.as_uri(), tiny_llama, tiny_adapter, evaluation=gate)
    staged.store(storage)

    with pytest.raises(CloisterError) as refused:
        publish(staged.run, staged.plan, storage, Reporter(), tmp_path / "scratch")

    assert refused.value.reason is FailureReason.EVALUATION_GATE_FAILED
    for number in ("60.0%", "2.4000", "1.2000", "50.0%", staged.run.layout.adapter):
        assert number in refused.value.message
    assert storage.exists(staged.run.layout.checks_file)
    assert storage.list(staged.run.output.folder) == []
    assert not storage.exists(staged.run.output.pointer)


def test_an_adapter_that_passes_the_gate_says_so(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    gate = {"gate": {"minRelativeImprovement": 0.5}}
    staged = stage(tmp_path.as_uri(), tiny_llama, tiny_adapter, evaluation=gate)

    folder = published_folder(staged, storage, tmp_path / "scratch")

    assert json.loads((folder / "checks.json").read_text())["gate"] == "Passed"
    assert manifest_of(folder)["checks"]["gate"] == "Passed"


def test_a_gate_without_a_validation_loss_is_not_passed(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    staged = stage(tmp_path.as_uri(), tiny_llama, tiny_adapter, evaluation={"gate": {"minRelativeImprovement": 0.1}})
    staged.checks = staged.checks.model_copy(update={"base_loss": None, "loss": None, "evaluations": []})
    staged.store(storage)

    with pytest.raises(CloisterError, match=r"10\.0% below the base's, and no validation loss was measured") as refused:
        publish(staged.run, staged.plan, storage, Reporter.silent(), tmp_path / "scratch")

    assert refused.value.reason is FailureReason.EVALUATION_GATE_FAILED
    assert "Give the dataset validation examples." in refused.value.message
    assert refused.value.result is not None
    assert refused.value.result["evaluation"] == {
        "exactMatch": {"rows": 20, "before": 0, "after": 18},
        "gate": "Failed",
    }
