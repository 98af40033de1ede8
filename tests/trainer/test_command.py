"""The cloister command as a person types it: a real process, a tiny Llama, files as the store."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cloister_api.exit_codes import ExitCode
from support.smollm2_tokenizer import smollm2_tokenizer_folder

ROWS = 64
STEPS = 200
pytestmark = pytest.mark.timeout(600)


@dataclass
class Desk:
    """A folder with a model, rows and jobs, and the command to run there."""

    folder: Path

    def job(self, name: str) -> Path:
        """A manifest whose output lies in a folder of its own."""
        spec = {
            "model": {"uri": (self.folder / "model").as_uri()},
            "dataset": {"uri": (self.folder / "rows.jsonl").as_uri(), "validation": {"fraction": 0}},
            "lora": {"rank": 4},
            "training": {"epochs": 1000, "maxSteps": STEPS, "globalBatchSize": 8, "precision": "BF16"},
            "distribution": {"gpusPerWorker": 0},
            "output": {"uri": (self.folder / f"out-{name}").as_uri()},
        }
        manifest = {
            "apiVersion": "cloister.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": "orders"},
            "spec": spec,
        }
        path = self.folder / f"{name}.yaml"
        with path.open("w") as file:
            YAML().dump(manifest, file)
        return path

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """The command in a process (and process group) of its own."""
        environment = os.environ | {"CLOISTER_SCRATCH": str(self.folder / "scratch"), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "cloister_trainer.cli.main", *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """The command, waited for."""
        with self.start(*arguments) as process:
            out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def published(self, name: str) -> Path:
        """The immutable folder that a job's pointer names."""
        output = self.folder / f"out-{name}"
        return output / json.loads((output / "current.json").read_text())["folder"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """Two layers of Llama with SmolLM2's tokenizer, and rows to train on."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("desk")
    model = folder / "model"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(model)
    for file in smollm2_tokenizer_folder().iterdir():
        if file.name != "config.json":
            shutil.copy(file, model / file.name)
    (model / "README.md").write_text("---\nlicense: apache-2.0\n---\nA tiny random model.\n")
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(ROWS):
            turns = [
                {"role": "user", "content": f"Please send {number} crates."},
                {"role": "assistant", "content": f"crates: {number}"},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    return Desk(folder)


@pytest.fixture(scope="module")
def undisturbed(desk: Desk) -> Path:
    """The folder that a run without any trouble publishes."""
    finished = desk.run("run", desk.job("undisturbed"))
    assert finished.returncode == ExitCode.DONE, finished.stderr
    return desk.published("undisturbed")


def test_validate_names_every_job_and_every_mistake(desk: Desk) -> None:
    good, bad = desk.job("good"), desk.folder / "bad.yaml"
    bad.write_text(good.read_text().replace("rank: 4", "rnk: 4"))
    checked = desk.run("validate", good, bad)
    assert checked.returncode == ExitCode.REFUSED
    assert "good.yaml: FineTuneJob orders is valid." in checked.stdout
    assert "spec.lora.rnk" in checked.stderr and "rank" in checked.stderr
    assert "Traceback" not in checked.stderr


def test_preview_shows_what_is_trained(desk: Desk) -> None:
    shown = desk.run("preview", desk.job("preview"), "--rows", "2")
    assert shown.returncode == ExitCode.DONE, shown.stderr
    assert "Stop token: <|im_end|>" in shown.stdout
    assert "[[crates: 0<|im_end|>" in shown.stdout
    assert desk.run("preview", desk.job("preview"), "--rows", "0").returncode == ExitCode.USAGE
    assert "Please send 1 crates." in shown.stdout and "[[Please" not in shown.stdout


def test_plan_shows_every_part_and_writes_nothing(desk: Desk) -> None:
    planned = desk.run("plan", desk.job("plan"))
    assert planned.returncode == ExitCode.DONE, planned.stderr
    for words in ("apache-2.0", "saved activations", "What if", "141 GiB", f"{STEPS} ("):
        assert words in planned.stdout
    assert not (desk.folder / "out-plan").exists()


def test_a_job_for_gpus_is_planned_here_and_refused_only_by_run(desk: Desk) -> None:
    job = desk.job("gpus")
    job.write_text(job.read_text().replace("gpusPerWorker: 0", "gpusPerWorker: 8\n    gpuMemory: 80Gi"))
    planned = desk.run("plan", job)
    assert planned.returncode == ExitCode.DONE, planned.stderr
    assert "Memory of one GPU" in planned.stdout
    refused = desk.run("run", job)
    assert refused.returncode == ExitCode.REFUSED
    assert "8 GPUs" in refused.stderr and "gpusPerWorker" in refused.stderr


def test_a_held_run_goes_on_when_it_is_released(desk: Desk) -> None:
    job = desk.job("held")
    released = job.read_text()
    job.write_text(released + "  hold: BeforeTraining\n")
    held = desk.run("run", job)
    assert held.returncode == ExitCode.DONE, held.stderr
    assert "Remove spec.hold" in held.stderr
    job.write_text(released)
    said = end_during_training(desk, job, lambda process: process.kill(), "progress")
    assert "Prepared earlier" in said


def test_a_run_publishes_an_adapter_that_verifies(desk: Desk, undisturbed: Path) -> None:
    verified = desk.run("verify", (desk.folder / "out-undisturbed").as_uri())
    assert verified.returncode == ExitCode.DONE, verified.stdout
    adapter = undisturbed / "adapter_model.safetensors"
    sound = adapter.read_bytes()
    adapter.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    changed = desk.run("verify", (desk.folder / "out-undisturbed").as_uri(), "--json")
    adapter.write_bytes(sound)
    assert changed.returncode == 1
    assert json.loads(changed.stdout)["ok"] is False


def test_the_same_command_again_has_nothing_to_do(desk: Desk, undisturbed: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in undisturbed.iterdir())
    again = desk.run("run", desk.job("undisturbed"))
    assert again.returncode == ExitCode.DONE
    assert "AlreadyPublished" in again.stdout
    assert sorted((path, path.stat().st_mtime_ns) for path in undisturbed.iterdir()) == before


def end_during_training(desk: Desk, job: Path, end: Callable[[subprocess.Popen[str]], None], event: str) -> str:
    """Start a run, end it at its first event line of a kind, and return what it said."""
    process = desk.start("run", job)
    said: list[str] = []
    listener = threading.Thread(target=lambda: said.extend(process.stderr or []))
    listener.start()
    try:
        for line in process.stdout or []:
            if json.loads(line)["event"] == event:
                end(process)
                break
        for _ in process.stdout or []:
            pass
        process.wait(timeout=120)
    finally:
        if process.poll() is None:
            process.kill()
        listener.join()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    return "".join(said)


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def test_what_ctrl_c_leaves_the_same_command_and_resume_from_go_on_with(desk: Desk, undisturbed: Path) -> None:
    job = desk.job("interrupted")
    said = end_during_training(desk, job, lambda process: process.send_signal(signal.SIGINT), "progress")
    assert "run the same command again" in said
    (earlier,) = (desk.folder / "out-interrupted" / "runs").iterdir()
    (checkpoint,) = (earlier / "checkpoints").iterdir()
    assert 0 < int(checkpoint.name.removeprefix("step-")) < STEPS
    other = desk.job("resumed")
    other.write_text(other.read_text() + f"  resumeFrom: {{uri: {earlier.as_uri()}}}\n")
    resumed = desk.run("run", other)
    assert resumed.returncode == ExitCode.DONE, resumed.stderr
    assert "nothing is tokenised" in resumed.stderr
    assert adapter_bytes(desk.published("resumed")) == adapter_bytes(undisturbed)
    again = desk.run("run", job)
    assert again.returncode == ExitCode.DONE, again.stderr
    assert adapter_bytes(desk.published("interrupted")) == adapter_bytes(undisturbed)


def test_an_adapter_that_its_gate_kept_back_is_published_without_training_it_again(desk: Desk) -> None:
    job = desk.job("gated")
    ungated = job.read_text().replace("fraction: 0", "fraction: 0.2").replace(f"maxSteps: {STEPS}", "maxSteps: 4")
    job.write_text(ungated + "  evaluation: {gate: {minRelativeImprovement: 0.9}}\n")
    kept_back = desk.run("run", job)
    assert kept_back.returncode == ExitCode.FAILED, kept_back.stderr
    assert "EvaluationGateFailed" in kept_back.stderr
    (earlier,) = (desk.folder / "out-gated" / "runs").iterdir()
    judged = desk.job("judged")
    output = judged.read_text().partition("output:")[2]
    judged.write_text(f"{ungated.partition('output:')[0]}output:{output}  resumeFrom: {{uri: {earlier.as_uri()}}}\n")
    published = desk.run("run", judged)
    assert published.returncode == ExitCode.DONE, published.stderr
    assert "publishing is all that is left" in published.stderr
    assert [json.loads(line)["event"] for line in published.stdout.splitlines() if line.startswith("{")] == ["done"]
    assert adapter_bytes(desk.published("judged")) == adapter_bytes(earlier / "adapter")
    longer = desk.job("longer")
    longer.write_text(judged.read_text().replace("out-judged", "out-longer").replace("maxSteps: 4", "maxSteps: 6"))
    trained = desk.run("run", longer)
    assert trained.returncode == ExitCode.DONE, trained.stderr
    steps = [json.loads(line).get("step") for line in trained.stdout.splitlines() if '"event":"progress"' in line]
    assert steps[-1] == 6 and 4 not in steps


def test_kill_9_and_the_same_command_again_end_with_the_same_adapter(desk: Desk, undisturbed: Path) -> None:
    job = desk.job("killed")
    job.write_text(job.read_text() + "  checkpoint: {interval: 1s}\n")
    end_during_training(desk, job, lambda process: process.kill(), "checkpoint")
    again = desk.run("run", job)
    assert again.returncode == ExitCode.DONE, again.stderr
    assert adapter_bytes(desk.published("killed")) == adapter_bytes(undisturbed)
