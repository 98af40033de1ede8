"""What prepare and publish leave for the operator: verdicts in a termination message that fits."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cloister_api.exit_codes import ExitCode
from cloister_api.reasons import FailureReason
from cloister_api.run import Run
from cloister_api.termination import MAX_BYTES, Outcome, TerminationMessage, parse_termination
from cloister_operator.decide.results import read_published
from cloister_trainer.__main__ import main
from cloister_trainer.storage import Storage, open_storage
from support.staged_run import StagedRun, stage

SECOND = "22222222-2222-3333-4444-555555555555"
PROOF = {"processes": 1, "controlAnswered": 1, "canaryRefused": 1, "time": "2026-01-01T10:00:00+00:00"}
EVALUATION = {"baseLoss": 2.4, "loss": 1.2, "exactMatch": {"rows": 20, "before": 0, "after": 18}}


@pytest.fixture
def storage() -> Storage:
    return open_storage(environ={})


@dataclass(frozen=True)
class Pod:
    """Runs a step as a pod does, on a network where the proof succeeds."""

    root: Path

    def run(self, step: str, run: Run) -> tuple[int, TerminationMessage]:
        """The exit code, and the message as the operator reads it."""
        run_file, log = self.root / "run.json", self.root / "termination-log"
        run_file.write_text(run.model_dump_json(by_alias=True, exclude_none=True))
        log.write_text("")
        environ = {"CLOISTER_TERMINATION_LOG": str(log), "CLOISTER_SCRATCH": str(self.root / "scratch")}
        code = main([step, "--run", str(run_file)], environ)
        assert len(log.read_bytes()) <= MAX_BYTES
        message = parse_termination(log.read_text())
        assert message is not None
        return code, message


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pod:
    monkeypatch.setattr("cloister_trainer.steps.prove_egress", lambda run: PROOF)
    return Pod(tmp_path)


def proven(staged: StagedRun) -> StagedRun:
    """The run with the proofs that prepare and train made."""
    staged.plan = staged.plan.model_copy(update={"egress": PROOF})
    staged.checks = staged.checks.model_copy(update={"egress": {**PROOF, "processes": 8, "controlAnswered": 8}})
    return staged


def result_of(message: TerminationMessage) -> dict[str, Any]:
    assert message.result is not None
    return message.result


def test_publish_tells_evaluation_and_all_proofs(
    pod: Pod, tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    staged = proven(stage(tmp_path.as_uri(), tiny_llama, tiny_adapter))
    staged.store(storage)

    for _ in ("published now", "published before"):
        code, message = pod.run("publish", staged.run)

        assert (code, message.outcome) == (ExitCode.DONE, Outcome.SUCCEEDED)
        result = result_of(message)
        assert result["output"]["uri"] == staged.run.output.folder
        assert result["evaluation"] == {**EVALUATION, "gate": "None"}
        assert result["egress"]["prepare"] == result["egress"]["publish"] == PROOF
        assert result["egress"]["train"]["processes"] == 8
        assert result["egress"]["summary"] == "3 of 10 processes: control answered, canary refused."
        seen = read_published(result)
        assert seen is not None and seen.egress.processes == 10, "the operator reads what publish tells"


def test_a_gate_that_is_not_reached_tells_the_evaluation_too(
    pod: Pod, tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    gate = {"gate": {"minRelativeImprovement": 0.6}}
    staged = proven(stage(tmp_path.as_uri(), tiny_llama, tiny_adapter, evaluation=gate))
    staged.store(storage)

    code, message = pod.run("publish", staged.run)

    assert code != ExitCode.DONE
    assert message.reason is FailureReason.EVALUATION_GATE_FAILED
    assert "60.0%" in message.message
    result = result_of(message)
    assert result["evaluation"] == {**EVALUATION, "gate": "Failed"}
    assert result["egress"]["train"]["processes"] == 8
    assert "output" not in result


def test_an_equal_adapter_brings_its_evaluation_and_the_runs_own_proofs(
    pod: Pod, tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    first = stage(tmp_path.as_uri(), tiny_llama, tiny_adapter)
    first.store(storage)
    pod.run("publish", first.run)
    second = proven(stage(tmp_path.as_uri(), tiny_llama, tiny_adapter, uid=SECOND, output={"ifExists": "Reuse"}))
    second.store(storage)

    result = result_of(pod.run("publish", second.run)[1])

    assert result["output"]["uri"] == first.run.output.folder
    assert result["evaluation"]["loss"] == 1.2
    assert result["egress"]["train"]["processes"] == 8


def test_prepare_tells_its_proof(
    pod: Pod, tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    staged = stage(tmp_path.as_uri(), tiny_llama, tiny_adapter)
    staged.store(storage)

    planned = result_of(pod.run("prepare", staged.run)[1])
    pod.run("publish", staged.run)
    reused = result_of(pod.run("prepare", staged.run)[1])

    assert planned["plan"]["totalSteps"] == 40
    assert planned["egress"] == reused["egress"] == PROOF
    assert reused["evaluation"] == {**EVALUATION, "gate": "None"}
    assert reused["reused"]["uri"] == staged.run.output.folder


def test_a_message_with_long_uris_and_warnings_still_carries_its_result(
    pod: Pod, tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, storage: Storage
) -> None:
    deep = "/".join(["a-folder-with-a-long-name"] * 30)
    gate = {"gate": {"minRelativeImprovement": 0.6}}
    staged = proven(stage(f"{tmp_path.as_uri()}/{deep}", tiny_llama, tiny_adapter, evaluation=gate))
    warnings = ["What is worth knowing before training, at some length. " * 10] * 8
    plan = staged.plan.plan.model_copy(update={"warnings": warnings})
    staged.plan = staged.plan.model_copy(update={"plan": plan})
    staged.store(storage)

    prepared, refused = (result_of(pod.run(step, staged.run)[1]) for step in ("prepare", "publish"))

    assert prepared["egress"] == PROOF
    assert prepared["plan"]["warnings"]
    assert refused["evaluation"]["gate"] == "Failed"


@pytest.mark.parametrize(
    ("error", "reason"), [(errno.ENOSPC, FailureReason.LOCAL_DISK_FULL), (errno.EBADF, FailureReason.INTERNAL)]
)
def test_a_full_local_disk_is_named(
    error: int,
    reason: FailureReason,
    pod: Pod,
    tmp_path: Path,
    tiny_llama: Path,
    tiny_adapter: Path,
    storage: Storage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    staged = stage(tmp_path.as_uri(), tiny_llama, tiny_adapter)
    staged.store(storage)
    write = Path.write_bytes

    def write_bytes(path: Path, data: bytes) -> int:
        if "publish-" in str(path):
            raise OSError(error, os.strerror(error))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)

    _, message = pod.run("publish", staged.run)

    assert message.reason is reason
    if reason is FailureReason.LOCAL_DISK_FULL:
        assert "The disk is full while writing" in message.message
        assert str(tmp_path / "scratch") in message.message
