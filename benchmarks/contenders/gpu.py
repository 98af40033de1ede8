"""One run of a random Llama on the first GPU, without Ray: one rank of the code that trains, from plan to checks.

The times that `Saver.save` holds up the loop, the allocator's peaks, and what is allocated before and after a forward
pass are seen by wrapping; everything else is the run's own report.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.models import shape
from cloister_api.job import FineTuneJobSpec
from cloister_api.run import Run, RunSettings
from cloister_trainer.model.memory_parts import OUTSIDE_ALLOCATOR
from cloister_trainer.records import PlanFile, TrainPlan
from cloister_trainer.storage import open_storage
from cloister_trainer.train.context import WorkerContext
from cloister_trainer.train.engine import Engine
from cloister_trainer.train.messages import Message, Request
from cloister_trainer.train.model import TrainingModule
from cloister_trainer.train.saver import Saver
from cloister_trainer.train.worker import run_worker

UID = "4b2c1f1e-6a0a-5f7e-8a34-0f6f1c2d9b11"
WARM_UP_STEPS = 2
DEVICE = torch.device("cuda:0")


class Silent:
    """Nobody listens and nobody asks."""

    def push(self, message: Message) -> None:
        """Hand over a message."""

    def request(self) -> Request:
        """The driver's newest request."""
        return Request.NONE


class Meter:
    """What is seen by wrapping."""

    def __init__(self) -> None:
        self.stalls_s: list[float] = []
        self.built_bytes = self.forward_bytes = 0
        self._wrap()

    def _wrap(self) -> None:
        save, forward, begin = Saver.save, TrainingModule.forward, Engine.__init__

        def timed_save(saver: Saver) -> None:
            torch.cuda.synchronize()
            began = time.perf_counter()
            save(saver)
            self.stalls_s.append(time.perf_counter() - began)

        def seen_forward(module: TrainingModule, micro_batch: Any) -> Any:
            loss = forward(module, micro_batch)
            if torch.is_grad_enabled():
                self.forward_bytes = max(self.forward_bytes, torch.cuda.memory_allocated())
            return loss

        def seen_begin(engine: Engine, *given: Any) -> None:
            begin(engine, *given)
            self.built_bytes = torch.cuda.memory_allocated()

        Saver.save, TrainingModule.forward, Engine.__init__ = timed_save, seen_forward, seen_begin  # type: ignore[method-assign]


def main() -> None:
    """Train as argv[1] says in JSON, and report."""
    asked = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="cloister-gpu-") as scratch:
        print("RESULT", json.dumps(measure(asked, Path(scratch))), flush=True)


def measure(asked: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """One run in `scratch`; the model's folder and the node's copy of it are kept for the next one."""
    from support import random_llama
    from support.seaweedfs import free_ports

    sizes = shape(asked["shape"])
    folder = Path(asked["folder"])
    record = random_llama.make_random_llama(folder / "model", sizes, "cuda")
    torch.cuda.empty_cache()
    batch, steps = asked["batch"], asked["steps"] + WARM_UP_STEPS
    index = random_llama.make_long_tokens(scratch / "tokens", batch * steps, asked["length"], sizes["vocab_size"])
    run = make_run(asked, scratch, record.uri, steps)
    (port,) = free_ports(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    torch.distributed.init_process_group("nccl", timeout=timedelta(seconds=600), device_id=DEVICE)
    torch.cuda.reset_peak_memory_stats()
    meter = Meter()
    context = WorkerContext(
        run=run,
        plan=PlanFile(model=record, tokens_uri=(scratch / "tokens").as_uri(), data=index, plan=first_plan(run, steps)),
        attempt=1,
        rank=0,
        world_size=1,
        node="localhost",
        device=DEVICE,
        storage=open_storage(run.settings.storage),
        sink=Silent(),
        scratch=scratch / "workspace" / "runs" / UID,
        models=folder / "models",
    )
    run_worker(context)
    return report(run, scratch, meter)


def make_run(asked: dict[str, Any], scratch: Path, model: str, steps: int) -> Run:
    """The job; `training` and `lora` of `asked` win."""
    spec = {
        "model": {"uri": model},
        "dataset": {"uri": (scratch / "rows.jsonl").as_uri()},
        "output": {"uri": (scratch / "out").as_uri()},
        "lora": {"rank": 16, "alpha": 32, **asked.get("lora", {})},
        "training": {"epochs": 1, "globalBatchSize": asked["batch"], "maxSteps": steps, **asked.get("training", {})},
        "evaluation": {"samples": 0},
        "checkpoint": {"interval": "0s"},
        "distribution": {"workers": 1, "gpusPerWorker": 1, **asked.get("distribution", {})},
        "storage": {"runUri": (scratch / "out" / "runs").as_uri()},
    }
    settings = RunSettings(require_enforced_egress=False)
    return Run(uid=UID, namespace="local", name="gpu", spec=FineTuneJobSpec.model_validate(spec), settings=settings)


def first_plan(run: Run, steps: int) -> TrainPlan:
    """What train makes anew for the memory that is free."""
    return TrainPlan(
        zero_stage=run.spec.distribution.zero_stage or 2,
        micro_batch_tokens=1,
        gradient_checkpointing=False,
        packing=True,
        max_length=8192,
        total_steps=steps,
        steps_per_epoch=steps,
        target_modules=[],
        trainable_parameters=0,
        gpu_memory=[],
        host_memory=[],
        local_disk=[],
    )


def report(run: Run, scratch: Path, meter: Meter) -> dict[str, Any]:
    """Speed of the steps after the warm-up, and memory beside the plan."""
    stored = scratch / "out" / "runs" / UID
    rows = [json.loads(line) for part in sorted((stored / "metrics").glob("from-*.jsonl")) for line in part.open()]
    checks = json.loads((stored / "adapter" / "checks.json").read_text())
    parts = {part["name"]: part["bytes"] for part in checks["plan"]["gpuMemory"]}
    checkpoints = [sum(file.stat().st_size for file in each.iterdir()) for each in (stored / "checkpoints").iterdir()]
    return {
        "tokensPerSecond": median(row["tokensPerSecond"] for row in rows[WARM_UP_STEPS:]),
        "microBatchTokens": checks["plan"]["microBatchTokens"],
        "recomputes": checks["plan"]["gradientCheckpointing"],
        "zeroStage": checks["plan"]["zeroStage"],
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "built": meter.built_bytes,
        "forward": meter.forward_bytes,
        "planned": sum(size for name, size in parts.items() if name not in OUTSIDE_ALLOCATOR),
        "parts": parts,
        "stallSeconds": median(meter.stalls_s),
        "checkpointBytes": max(checkpoints),
        "trainable": checks["plan"]["trainableParameters"],
        "losses": [row["loss"] for row in rows],
    }


if __name__ == "__main__":
    main()
