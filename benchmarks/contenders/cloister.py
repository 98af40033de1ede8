"""Cloister itself: the driver with Ray and DeepSpeed, checkpoints, metrics and checks, on the same rows.

`--variant` is checkpoint.interval, 10m without it.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from datetime import datetime
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from benchmarks.contenders.workload import (
    ALPHA,
    LEARNING_RATE,
    MICRO_BATCH_TOKENS,
    RANK,
    WARM_UP_STEPS,
    Options,
    Row,
    options,
    report,
)
from cloister_api.events import CheckpointSaved, Event, Progress
from cloister_api.job import FineTuneJobSpec
from cloister_api.run import Run, RunSettings
from cloister_trainer.model.folder import inspect_model
from cloister_trainer.model.plan import build_train_plan
from cloister_trainer.records import FileDigest, PlanFile, TokenShard, TokensIndex
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import open_storage
from cloister_trainer.train.batches import batch_ids
from cloister_trainer.train.driver import train
from cloister_trainer.workspace import Workspace

UID = "4b2c1f1e-6a0a-5f7e-8a34-0f6f1c2d9b11"


def main(asked: Options) -> None:
    """Train and report."""
    with tempfile.TemporaryDirectory(prefix="cloister-bench-") as scratch:
        measure(asked, Path(scratch))


def measure(asked: Options, scratch: Path) -> None:
    """One run in `scratch`, from the driver's start to checks.json."""
    run = make_run(asked, scratch)
    storage, reporter, workspace = open_storage(), Reporter.silent(), Workspace(scratch / "workspace")
    small = scratch / "small"
    small.mkdir()
    inspected = inspect_model(storage, run.spec.model.uri, small, "apache-2.0", RunSettings(), reporter)
    steps = asked.steps + WARM_UP_STEPS
    rows = asked.workload.rows(asked.steps, inspected.config["vocab_size"])
    index = write_tokens(rows, scratch / "tokens")
    plan = PlanFile(
        model=inspected.record,
        tokens_uri=(scratch / "tokens").as_uri(),
        data=index,
        plan=build_train_plan(run, inspected, index),
    )
    started, first_step, saved_steps = time.perf_counter(), 0.0, []

    def notice(event: Event) -> None:
        nonlocal first_step
        if isinstance(event, Progress) and not first_step:
            first_step = time.perf_counter() - started
        if isinstance(event, CheckpointSaved):
            saved_steps.append(event.step)

    train(run, plan, storage, reporter, workspace.run(run.uid), notice)
    parts = sorted((scratch / "out" / "runs" / UID / "metrics").glob("from-*.jsonl"))
    metrics = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
    # A row is told at the end of the step after its own, and the last one with the one before.
    begin, end = (datetime.fromisoformat(metrics[i]["time"]) for i in (WARM_UP_STEPS - 2, -1))
    order = [
        batch_ids(np.arange(len(rows)), run.spec.training.seed, 0, k, asked.workload.batch_size) for k in range(steps)
    ]
    report(
        sum(len(rows[i].tokens) for ids in order[WARM_UP_STEPS:] for i in ids),
        (end - begin).total_seconds(),
        [row["loss"] for row in metrics],
        firstStepSeconds=round(first_step, 1),
        measuredSeconds=(end - begin).total_seconds(),
        savedSteps=[step for step in saved_steps if WARM_UP_STEPS <= step < steps],
        rowTimes=[datetime.fromisoformat(row["time"]).timestamp() for row in metrics],
        rowTokens=[sum(len(rows[i].tokens) for i in ids) for ids in order],
    )


def make_run(asked: Options, scratch: Path) -> Run:
    """The job that the other contenders' constants describe."""
    spec = {
        "model": {"uri": asked.model.resolve().as_uri()},
        "dataset": {"uri": (scratch / "rows.jsonl").as_uri()},
        "output": {"uri": (scratch / "out").as_uri()},
        "lora": {"rank": RANK, "alpha": ALPHA},
        "training": {
            "epochs": 1,
            "globalBatchSize": asked.workload.batch_size,
            "microBatchTokens": MICRO_BATCH_TOKENS,
            "learningRate": LEARNING_RATE,
            "scheduler": "Constant",
            "warmupRatio": 0,
            "precision": asked.precision,
            "gradientCheckpointing": "Never",
        },
        "checkpoint": {"interval": asked.variant or "10m"},
        "distribution": {"workers": asked.processes, "gpusPerWorker": 0, "zeroStage": 2},
        "storage": {"runUri": (scratch / "out" / "runs").as_uri()},
    }
    settings = RunSettings(require_enforced_egress=False)
    return Run(uid=UID, namespace="local", name="bench", spec=FineTuneJobSpec.model_validate(spec), settings=settings)


def write_tokens(rows: list[Row], folder: Path) -> TokensIndex:
    """The rows as one shard, as prepare stores them."""
    folder.mkdir()
    name = "train-00000.safetensors"
    lengths = [len(row.tokens) for row in rows]
    spans = [(number, max(1, row.first_label), len(row.tokens)) for number, row in enumerate(rows)]
    tensors = {
        "tokens": np.concatenate([row.tokens for row in rows]).astype(np.uint32),
        "offsets": np.cumsum([0, *lengths]).astype(np.int64),
        "labelSpans": np.array(spans, dtype=np.int32),
        "repeats": np.ones(len(rows), dtype=np.uint8),
    }
    save_file(tensors, folder / name)
    content = (folder / name).read_bytes()
    trained = sum(end - start for _, start, end in spans)
    digest = FileDigest(name=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
    return TokensIndex(
        digest=digest.sha256,
        train=[TokenShard(file=digest, examples=len(rows), tokens=sum(lengths), trained_tokens=trained)],
        validation=[],
        epoch_examples=len(rows),
        epoch_tokens=sum(lengths),
        epoch_trained_tokens=trained,
        validation_examples=0,
        longest=max(lengths),
        stop_token_id=None,
        pad_token_id=0,
    )


if __name__ == "__main__":
    main(options())
