"""A job on a tiny random model of one family: the model on disk, its rows, and the three real steps."""

from __future__ import annotations

import json
import random
import string
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cloister_api.run import Run, RunSettings
from cloister_trainer.model.families import FAMILIES
from cloister_trainer.reporter import Reporter
from cloister_trainer.steps import StepContext, prepare_step, publish_step, train_step
from cloister_trainer.storage import open_storage
from cloister_trainer.train.lora import load_adapter_state
from cloister_trainer.train.model import TrainingModule
from cloister_trainer.workspace import Workspace
from support.tiny_models import VOCABULARY, save_tiny_model, with_adapter

RANK = 4
STEPS = 3
ROWS = 24
TRAINING = {"maxSteps": STEPS, "globalBatchSize": 8, "learningRate": 1e-2, "precision": "FP32"}


@dataclass(frozen=True)
class Published:
    """What the three steps left."""

    run: Run
    model: Path
    plan: dict[str, Any]
    """plan.json's plan, and `trainableParameters` as prepare told it."""
    checks: dict[str, Any]
    losses: list[float]
    folder: Path
    """The adapter as it is published."""

    def adapter(self) -> dict[str, Tensor]:
        """Its tensors."""
        return load_file(self.folder / "adapter_model.safetensors")

    def training_module(self) -> TrainingModule:
        """The module that trained it, with the published adapter."""
        module = with_adapter(self.model, self.run.spec.lora)
        load_adapter_state(module.model, self.adapter(), str(self.folder))
        return module


def prepare_train_publish(root: Path, model_type: str, workers: int, stage: int, preset: str) -> Published:
    """The three steps, on the Ray that RAY_ADDRESS names."""
    distribution = {"workers": workers, "gpusPerWorker": 0, "zeroStage": stage}
    context = job_context(root, model_type, distribution, lora={"targets": {"preset": preset}})
    run = context.run
    told = prepare_step(context)["plan"]
    plan = json.loads(context.storage.read(run.layout.plan_file))["plan"]
    train_step(context)
    output = publish_step(context)["output"]
    folder = Path(output["uri"].removeprefix("file://"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return Published(
        run=run,
        model=root / "model",
        plan={**plan, "trainableParameters": told["trainableParameters"]},
        checks=json.loads((folder / "checks.json").read_text()),
        losses=[row["loss"] for row in rows],
        folder=folder,
    )


def job_context(
    root: Path,
    model_type: str,
    distribution: dict[str, Any],
    lora: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
) -> StepContext:
    """What the steps of a job on a new tiny model of the family work with."""
    model = write_inputs(root, model_type)
    spec = {
        "model": {"uri": model.as_uri(), "license": FAMILIES[model_type].licenses[0]},
        "dataset": {"uri": (root / "rows.jsonl").as_uri()},
        "output": {"uri": (root / "out").as_uri()},
        "storage": {"runUri": (root / "runs").as_uri()},
        "lora": {"rank": RANK, "alpha": 8, **(lora or {})},
        "training": {**TRAINING, **(training or {})},
        "distribution": distribution,
    }
    settings = RunSettings(require_enforced_egress=False)
    run = Run.model_validate(
        {"uid": str(uuid.uuid4()), "namespace": "local", "name": "family", "spec": spec, "settings": settings}
    )
    return StepContext(run, open_storage(), Reporter.silent(), Workspace(root / "scratch"), lines=False)


def write_inputs(root: Path, model_type: str) -> Path:
    """A model as people publish one (bfloat16, tokenizer, licence), and rows beside it; the model's folder."""
    model = save_tiny_model(root / "model", model_type, dtype=torch.bfloat16)
    tokenizer().save_pretrained(model)
    (model / "LICENSE").write_text(f"The terms of {FAMILIES[model_type].licenses[0]}.\n")
    draw = random.Random(model_type)
    rows = [{"prompt": text(draw, 4, 40), "completion": text(draw, 1, 40)} for _ in range(ROWS)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return model


def text(draw: random.Random, least: int, most: int) -> str:
    return "".join(draw.choice(string.ascii_lowercase) for _ in range(draw.randint(least, most)))


def tokenizer() -> Any:
    """Each printable character of ASCII, after the special tokens that the tiny models' config.json names.

    Byte-level BPE without merges: for Qwen2 transformers makes one of the vocabulary, whatever tokenizer.json is.
    """
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as Bytes
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "<bos>", "<eos>", "Ġ", *(chr(code) for code in range(ord("!"), ord("~") + 1))]
    assert len(tokens) <= VOCABULARY
    known = Tokenizer(BPE({token: at for at, token in enumerate(tokens)}, merges=[]))
    known.pre_tokenizer, known.decoder = ByteLevel(add_prefix_space=False), Bytes()
    return PreTrainedTokenizerFast(tokenizer_object=known, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def expected_parameters(model: nn.Module, model_type: str, *, experts: bool) -> int:
    """rank x (in + out) for every linear module but the head and the routers, and for each expert's matrices."""
    frozen = ("lm_head", *FAMILIES[model_type].routers)
    linear = [
        module.in_features + module.out_features
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith(frozen)
    ]
    fused = [p.shape[0] * (p.shape[1] + p.shape[2]) for p in model.parameters() if p.ndim == 3] if experts else []
    return RANK * (sum(linear) + sum(fused))
