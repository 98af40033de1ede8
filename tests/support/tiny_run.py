"""Runs of a tiny Llama in a folder of their own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister_api.job import FineTuneJobSpec
from cloister_api.run import Run, RunSettings
from cloister_trainer.records import (
    ModelRecord,
    PlanFile,
    TrainPlan,
)
from support.tiny_inputs import make_model, make_tokens

UID = "0b5b3c52-5d0c-5c7e-9f50-3f4c64a3f6a1"


@dataclass
class TinyRun:
    """A run in `root`: model, tokens, plan and the run file."""

    root: Path
    run: Run
    plan: PlanFile

    @property
    def scratch(self) -> Path:
        return self.root / "scratch" / "runs" / self.run.uid

    def adapter(self) -> bytes:
        return self.stored("adapter/adapter_model.safetensors").read_bytes()

    def stored(self, name: str) -> Path:
        return Path(self.run.layout.root.removeprefix("file://")) / name

    def metrics(self) -> list[dict[str, Any]]:
        parts = sorted(self.stored("metrics").glob("from-*.jsonl"))
        return [json.loads(line) for part in parts for line in part.read_text().splitlines()]

    def checks(self) -> dict[str, Any]:
        checks: dict[str, Any] = json.loads(self.stored("adapter/checks.json").read_text())
        return checks


def make_run(
    root: Path,
    *,
    steps: int = 6,
    workers: int = 1,
    stage: int = 2,
    train: int = 24,
    validation: int = 0,
    micro_batch_tokens: int = 64,
    training: dict[str, Any] | None = None,
    inputs: Path | None = None,
    **spec: Any,
) -> TinyRun:
    """A CPU run of `steps` steps of 8 examples. `inputs` shares the model and tokens of another run's root."""
    inputs = inputs or root / "inputs"
    if not (inputs / "model.json").exists():
        model = make_model(inputs / "model")
        (inputs / "model.json").write_text(model.model_dump_json())
    model = ModelRecord.model_validate_json((inputs / "model.json").read_text())
    tokens = inputs / f"tokens-{train}-{validation}"
    index = make_tokens(tokens, train, validation)
    full = {
        "model": {"uri": model.uri},
        "dataset": {"uri": (inputs / "rows.jsonl").as_uri()},
        "output": {"uri": (root / "out").as_uri()},
        "lora": {"rank": 4, "alpha": 8},
        "training": {
            "maxSteps": steps,
            "epochs": 100,
            "globalBatchSize": 8,
            "learningRate": 1e-2,
            "precision": "FP32",
            **(training or {}),
        },
        "distribution": {"workers": workers, "gpusPerWorker": 0, "zeroStage": stage},
        **spec,
    }
    settings = RunSettings(require_enforced_egress=False)
    run = Run(uid=UID, namespace="local", name="tiny", spec=FineTuneJobSpec.model_validate(full), settings=settings)
    modules = [
        f"model.layers.{layer}.{part}"
        for layer in range(2)
        for part in (
            *(f"self_attn.{name}_proj" for name in "qkvo"),
            *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
        )
    ]
    plan = TrainPlan(
        zero_stage=stage,
        micro_batch_tokens=micro_batch_tokens,
        gradient_checkpointing=False,
        packing=True,
        max_length=64,
        total_steps=steps,
        steps_per_epoch=-(-train // 8),
        target_modules=modules,
        trainable_parameters=0,
        gpu_memory=[],
        host_memory=[],
        local_disk=[],
        gpu_memory_limit=None,
    )
    return TinyRun(root, run, PlanFile(model=model, tokens_uri=tokens.as_uri(), data=index, plan=plan))
