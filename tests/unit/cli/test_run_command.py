"""`cloister` around the three steps: which run it is, what stays of it, what an interruption says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloister_api.errors import CloisterError
from cloister_api.exit_codes import ExitCode
from cloister_api.reasons import FailureReason
from cloister_api.run import Run
from cloister_trainer import __main__ as pod
from cloister_trainer.cli import run as run_command
from cloister_trainer.cli.local import find_run, on_this_machine
from cloister_trainer.cli.main import main
from cloister_trainer.interrupt import Interrupted
from cloister_trainer.publish.pointer import Pointer
from cloister_trainer.reporter import Reporter
from cloister_trainer.steps import STEPS, StepContext
from cloister_trainer.storage import open_storage
from cloister_trainer.workspace import Workspace
from support.plans import a_run

PLAN = dict.fromkeys(
    ["examples", "tokens", "trainedTokens", "totalSteps", "trainableParameters", "baseParameters", "zeroStage"], 1
) | {"microBatchTokens": 1}


class Steps:
    """The three steps without their work; each hears of the run and may end as a test wants it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[Run] = []
        self.ends: dict[str, BaseException] = {}
        for name in ("prepare", "train", "publish"):
            monkeypatch.setattr(run_command, f"{name}_step", lambda context, name=name: self._step(name, context))

    def _step(self, name: str, context: StepContext) -> dict[str, Any]:
        if name == "prepare":
            self.runs.append(context.run)
            (context.workspace.run(context.run.uid) / "tokens").write_text("what the rows say")
            context.storage.write(context.run.layout.run_file, b"{}")
        if name in self.ends:
            raise self.ends[name]
        if name == "publish":
            context.storage.write(context.run.output.manifest, b"{}")
        results: dict[str, dict[str, Any]] = {
            "prepare": {"plan": PLAN},
            "train": {},
            "publish": {"output": {"uri": context.run.output.folder}},
        }
        return results[name]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Every step succeeds unless a test says otherwise."""
    return Steps(monkeypatch)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job on files."""
    monkeypatch.setenv("CLOISTER_SCRATCH", str(tmp_path / "scratch"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    spec = {
        "model": {"uri": (tmp_path / "model").as_uri()},
        "dataset": {"uri": (tmp_path / "rows.jsonl").as_uri()},
        "distribution": {"gpusPerWorker": 0},
        "output": {"uri": (tmp_path / "out").as_uri()},
    }
    kind = {"apiVersion": "cloister.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "orders"}}
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps({**kind, "spec": spec}))
    return path


def scratch_folders(job: Path) -> list[Path]:
    return sorted((job.parent / "scratch" / "runs").glob("*"))


def test_no_copy_of_the_tokens_stays_after_publishing(job: Path, steps: Steps) -> None:
    assert main(["run", str(job)]) == ExitCode.DONE
    assert scratch_folders(job) == []


def test_an_unfinished_run_keeps_its_scratch_folder_for_its_owner_alone(job: Path, steps: Steps) -> None:
    steps.ends["train"] = CloisterError(FailureReason.WORKERS_LOST, "A worker went.")
    assert main(["run", str(job)]) == ExitCode.RETRYABLE
    (folder,) = scratch_folders(job)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_what_fresh_left_unfinished_the_command_without_it_goes_on_with(job: Path, steps: Steps) -> None:
    assert main(["run", str(job)]) == ExitCode.DONE
    steps.ends["train"] = Interrupted(7)
    assert main(["run", str(job), "--fresh"]) == ExitCode.INTERRUPTED
    del steps.ends["train"]
    assert main(["run", str(job)]) == ExitCode.DONE
    assert main(["run", str(job)]) == ExitCode.DONE
    assert main(["run", str(job), "--fresh"]) == ExitCode.DONE
    first, second, third, fourth, fifth = (run.uid for run in steps.runs)
    assert first != second == third == fourth != fifth
    assert len({first, second, fifth}) == 3


def test_fresh_discards_the_unfinished_run_and_takes_its_place(job: Path, steps: Steps) -> None:
    steps.ends["train"] = Interrupted(7)
    main(["run", str(job)])
    checkpoint = f"{steps.runs[0].layout.checkpoint(7)}/state"
    storage = open_storage()
    storage.write(checkpoint, b"")
    main(["run", str(job), "--fresh"])
    assert steps.runs[0] == steps.runs[1]
    assert not storage.exists(checkpoint)


def test_the_newest_run_that_was_begun_is_found_whatever_was_published(tmp_path: Path) -> None:
    run, storage = a_run(output={"uri": (tmp_path / "out").as_uri()}), open_storage()
    assert find_run(run, storage, fresh=False) == find_run(run, storage, fresh=True) == run
    storage.write(run.output.manifest, b"{}")
    assert find_run(run, storage, fresh=False) == run
    second = find_run(run, storage, fresh=True)
    storage.write(second.output.manifest, b"{}")
    assert find_run(run, storage, fresh=False) == second
    assert find_run(run, storage, fresh=True) not in (run, second)


@pytest.mark.parametrize(("flags", "how"), [([], "again"), (["--fresh"], "without --fresh")])
def test_an_interruption_says_how_to_go_on(
    flags: list[str], how: str, job: Path, steps: Steps, capsys: pytest.CaptureFixture[str]
) -> None:
    steps.ends["train"] = Interrupted(7)
    assert main(["run", str(job), *flags]) == ExitCode.INTERRUPTED
    kept = "Interrupted. A checkpoint of step 7 is kept"
    assert f"{kept}; run the same command {how} to go on.\n" in capsys.readouterr().err
    steps.ends["train"] = KeyboardInterrupt()
    assert main(["run", str(job), *flags]) == ExitCode.INTERRUPTED
    said = capsys.readouterr().err
    assert f"Interrupted. What is done is kept; run the same command {how} to go on.\n" in said
    assert "No checkpoint" not in said


@pytest.mark.parametrize(("flags", "how"), [([], "again"), (["--fresh"], "without --fresh")])
def test_a_held_run_says_how_to_go_on(
    flags: list[str], how: str, job: Path, steps: Steps, capsys: pytest.CaptureFixture[str]
) -> None:
    held = json.loads(job.read_text())
    held["spec"]["hold"] = "BeforeTraining"
    job.write_text(json.dumps(held))
    assert main(["run", str(job), *flags]) == ExitCode.DONE
    assert f"Remove spec.hold, then run the same command {how} to go on." in capsys.readouterr().err


def test_an_unexpected_error_may_be_tried_again(job: Path, steps: Steps, capsys: pytest.CaptureFixture[str]) -> None:
    steps.ends["prepare"] = ZeroDivisionError("the content of a row")
    assert main(["run", str(job)]) == ExitCode.RETRYABLE
    said = capsys.readouterr().err
    assert "Internal: An unexpected ZeroDivisionError." in said and "content" not in said


def test_a_cluster_decides_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    many, open_ = a_run(distribution={"workers": 100}).spec, a_run().spec
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("RAY_ADDRESS", "ray-head:6379")
    assert [on_this_machine(spec, Reporter.silent()) for spec in (many, open_)] == [many, open_]
    monkeypatch.delenv("RAY_ADDRESS")
    assert on_this_machine(open_, Reporter.silent()).distribution.gpus_per_worker == 0


def test_plan_sees_an_output_that_is_taken(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pointer = Pointer(uid="11111111-2222-3333-4444-555555555555", folder="x", manifest_digest="0")
    before = open_storage().write((job.parent / "out" / "current.json").as_uri(), pointer.encode())
    assert main(["plan", str(job)]) == ExitCode.REFUSED
    assert "OutputExists" in capsys.readouterr().err
    assert open_storage().head((job.parent / "out" / "current.json").as_uri()).etag == before


def test_plan_sees_a_key_that_is_missing(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(job), "--signing-key", str(job.parent / "none.pem")]) == ExitCode.FAILED
    assert "none.pem cannot be read" in capsys.readouterr().err
    assert not (job.parent / "out").exists()


@pytest.mark.parametrize("variable", ["CLOISTER_SCRATCH", "XDG_CACHE_HOME"])
def test_a_workspace_is_the_same_folder_from_everywhere(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    below = {"CLOISTER_SCRATCH": "", "XDG_CACHE_HOME": "cloister"}[variable]
    assert Workspace.of_environment({variable: "here"}).root == tmp_path / "here" / below
    assert Workspace.of_environment({variable: "~/here"}).root == Path("/home/ada/here") / below
    assert Workspace.of_environment({}).root == Path("/home/ada/.cache/cloister")


@pytest.mark.parametrize(
    ("content", "said"), [(b"\xff\xfe", "Invalid JSON"), (b'{"uid": "KEY:SECRET"}', "uid: "), (None, "No such file")]
)
def test_a_run_file_that_cannot_be_used_is_a_sentence(
    content: bytes | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content)
    assert pod.main(["prepare", "--run", str(path)]) == ExitCode.USAGE
    heard = capsys.readouterr().err
    assert f"The run file {path} cannot be used: " in heard and said in heard
    assert "SECRET" not in heard


def test_an_interrupted_pod_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: StepContext) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setitem(STEPS, "prepare", interrupted)
    path = tmp_path / "run.json"
    path.write_text(a_run().model_dump_json(by_alias=True, exclude_none=True))
    assert pod.main(["prepare", "--run", str(path)]) == ExitCode.INTERRUPTED
    assert "Interrupted. What is done is kept" in capsys.readouterr().err
