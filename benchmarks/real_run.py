"""A real run that is killed twice: SmolLM2-135M, 2,000 rows, two workers; `make bench-real`.

`cloister run` trains beside SeaweedFS. At two steps drawn from a seed its process group gets SIGKILL, and the same
command goes on. Then the same job runs undisturbed, and both adapters are compared bit by bit. What was measured goes
to docs/real-run.md and docs/real-run.svg. Everything lies in .build/real-run; of the two runs one that has ended is not
run again, so delete the folder for a fresh start.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.models import smollm2
from benchmarks.real_data import make_rows
from benchmarks.real_report import write_page
from quickstart import MODEL_PREFIX, cloister, make_buckets, store_environment
from support.seaweedfs import SeaweedFS

ROOT = Path(__file__).resolve().parents[1]
SEED = 20261126
GLOBAL_BATCH = 16
KILLED_BETWEEN = ((0.2, 0.45), (0.55, 0.85))
"""Parts of the run's steps within which the two kills lie."""
PUBLISHED = ("adapter_model.safetensors", "checks.json", "metrics.jsonl")


@dataclass(frozen=True)
class Start:
    """One start of the command, and what it told of."""

    first_step: int
    last_step: int
    checkpoint: int
    """The newest that was complete in the store; 0 when there was none."""
    killed: bool
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both, compare, write the page; the exit code is the first one that is not 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="rows to train on (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=200, help="rows to measure (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=ROOT / ".build" / "real-run", help="where everything lies")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "real-run.md", help="what is written")
    parser.add_argument("--killed-only", action="store_true", help="do not run it undisturbed, half of the time")
    parser.add_argument("--note", default="", help="what else is to be said of the machine, after its memory")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder: Path = options.folder.resolve()
    with SeaweedFS(folder / "store", volume_size_mb=512) as store:
        upload(store, options.rows, options.held_out)
        # Only the first answers held-out rows: that measures, and does not change what is trained.
        for name, kills, samples in (("killed", kill_steps(options.rows), options.held_out), ("undisturbed", [], 0)):
            done = folder / f"{name}.json"
            if done.exists() or (options.killed_only and not kills):
                continue
            environment = store_environment(store)
            job = write_job(folder / f"{name}.yaml", name, samples)
            starts = run(job, kills, environment, folder / f"{name}.log")
            if (code := cloister(["verify", output_uri(name)], environment)) != 0:
                return code
            download(store, name, folder / name)
            done.write_text(json.dumps([asdict(start) for start in starts], indent=1))
    job = json.loads((folder / "killed.yaml").read_text())
    write_page(options.page, folder, job, options.rows, options.note)
    return 0


def kill_steps(rows: int) -> list[int]:
    """After which steps the run is killed; the same for the same number of rows."""
    rng, steps = random.Random(SEED), rows / GLOBAL_BATCH
    return [rng.randint(int(begin * steps), int(end * steps)) for begin, end in KILLED_BETWEEN]


def upload(store: SeaweedFS, rows: int, held_out: int) -> None:
    """The model and the data; equal bytes get the ETags that they had, so an interrupted run still finds its inputs."""
    make_buckets(store)
    client = store.client()
    for file in smollm2().iterdir():
        client.upload_file(str(file), "models", f"{MODEL_PREFIX}/{file.name}")
    for name, content in make_files(rows, held_out).items():
        client.put_object(Bucket="datasets", Key=f"mails/{name}", Body=content.encode())


def make_files(rows: int, held_out: int) -> dict[str, str]:
    """The data, by file name."""
    mails = make_rows(SEED, rows + held_out)
    parts = {"train.jsonl": mails[:rows], "holdout.jsonl": mails[rows:]}
    return {name: "".join(f"{row}\n" for row in part) for name, part in parts.items()}


def write_job(path: Path, name: str, samples: int) -> Path:
    """The manifest, in JSON, which is YAML too."""
    spec = make_spec(f"s3://models/{MODEL_PREFIX}", "s3://datasets/mails", output_uri(name), samples)
    job = {"apiVersion": "cloister.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}, "spec": spec}
    path.write_text(json.dumps(job, indent=2) + "\n")
    return path


def make_spec(model: str, data: str, output: str, samples: int) -> dict[str, Any]:
    """The job, of the URIs of the model, of the data's folder and of the output."""
    return {
        "model": {"uri": model},
        "dataset": {"uri": f"{data}/train.jsonl", "validation": {"uri": f"{data}/holdout.jsonl"}},
        "lora": {"dropout": 0.05},
        "training": {"epochs": 1, "globalBatchSize": GLOBAL_BATCH, "learningRate": 5e-4},
        "distribution": {"workers": 2, "gpusPerWorker": 0, "zeroStage": 2},
        "checkpoint": {"interval": "60s"},
        "evaluation": {"everyEpochs": 0.2, "samples": samples},
        "output": {"uri": output},
    }


def output_uri(name: str) -> str:
    """Where a run's adapter goes."""
    return f"s3://adapters/{name}"


def run(job: Path, kills: Sequence[int], environment: dict[str, str], log: Path) -> list[Start]:
    """The same command again and again until it ends by itself; killed once at each of `kills`.

    Raises:
        SystemExit: it ended with another exit code than 0; the message has the end of `log`.
    """
    starts = []
    for kill_at in (*kills, None):
        start, code = run_until(kill_at, job, environment, log)
        starts.append(start)
        print(start, flush=True)
        if not start.killed and code != 0:
            sys.exit(f"`cloister run` ended with {code}. The end of {log}:\n{log.read_text()[-4000:]}")
    return starts


def run_until(kill_at: int | None, job: Path, environment: dict[str, str], log: Path) -> tuple[Start, int]:
    """One start of the command, and its exit code; SIGKILL for its process group once it tells of step `kill_at`."""
    command = [sys.executable, "-m", "cloister_trainer.cli.main", "run", str(job)]
    steps, checkpoint, killed, began = [], 0, False, time.monotonic()
    with log.open("a") as said:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True
        )
        try:
            for event in events(process):
                if event["event"] == "checkpoint":
                    checkpoint = event["step"]
                if event["event"] == "progress":
                    steps.append(event["step"])
                    killed = kill_at is not None and event["step"] >= kill_at
                if killed:
                    break
        finally:
            if process.poll() is None and (killed or sys.exc_info()[0] is not None):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
    return Start(steps[0], steps[-1], checkpoint, killed, time.monotonic() - began), code


def events(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """The event lines on its standard output."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith('{"cloister":'):
            yield json.loads(line)


def download(store: SeaweedFS, name: str, folder: Path) -> None:
    """What the page is made of, from the published folder."""
    client = store.client()
    pointer = json.loads(client.get_object(Bucket="adapters", Key=f"{name}/current.json")["Body"].read())
    folder.mkdir(exist_ok=True)
    for file in PUBLISHED:
        client.download_file("adapters", f"{name}/{pointer['uid']}/{file}", str(folder / file))


if __name__ == "__main__":
    sys.exit(main())
