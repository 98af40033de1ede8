"""A run as train leaves it: a tiny random model, an adapter made by stock PEFT, plan, checks and metrics."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister_api.layout import join
from cloister_api.run import Run
from cloister_api.status import ExactMatch
from cloister_trainer.prepare.job import read_chat_template
from cloister_trainer.prepare.report import length_report
from cloister_trainer.publish.digests import digest_bytes
from cloister_trainer.publish.main import publish
from cloister_trainer.records import (
    Checks,
    EvaluationPoint,
    FileDigest,
    LicenseFinding,
    ListedFile,
    MemoryPart,
    ModelRecord,
    PlanFile,
    SampleAnswer,
    TokenShard,
    TokensIndex,
    TrainPlan,
)
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import Storage, open_storage

UID = "11111111-2222-3333-4444-555555555555"
LICENSE_TEXT = b"Apache License, Version 2.0. A short one, for tests.\n"
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_model(folder: Path, config: Any | None = None) -> Path:
    """A tiny random Llama (or the model of `config`) saved with save_pretrained, with tokenizer and licence."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = config or LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{index}": index + 3 for index in range(61)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    fast.save_pretrained(folder)
    (folder / "LICENSE").write_bytes(LICENSE_TEXT)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    return folder


def make_adapter(model_folder: Path, folder: Path, **lora: Any) -> Any:
    """A stock PEFT adapter with random A and B, saved with save_pretrained; the live PeftModel."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model_folder)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": list(MODULES), "task_type": "CAUSAL_LM", **lora}
    model = get_peft_model(base, LoraConfig(**settings))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return model


@dataclass
class StagedRun:
    """A run that is ready to be published, and where things lie."""

    run: Run
    plan: PlanFile
    checks: Checks
    model_folder: Path
    adapter_folder: Path

    def store(self, storage: Storage) -> None:
        """Write what train and prepare leave in the run folder."""
        layout = self.run.layout
        for file in (self.checks.adapter, self.checks.adapter_config):
            storage.upload(self.adapter_folder / file.name, join(layout.adapter, file.name))
        storage.write(layout.checks_file, self.checks.model_dump_json(by_alias=True).encode())
        storage.write(layout.plan_file, self.plan.model_dump_json(by_alias=True).encode())
        storage.write(layout.metrics_part(1), metrics_lines(1, 30, "2026-01-01T10:00"))
        storage.write(layout.metrics_part(31), metrics_lines(31, 40, "2026-01-01T11:00"))
        storage.write(join(layout.tokens, "train-00000.safetensors"), b"tokens")
        storage.write(join(layout.tokens, "index.json"), b"{}")
        storage.write(join(layout.checkpoint(40), "index.json"), b"{}")


def published_folder(staged: StagedRun, storage: Storage, scratch: Path, signing_key: Path | None = None) -> Path:
    """Where the adapter of a run in a file:// store lies, after storing and publishing it."""
    staged.store(storage)
    published = publish(staged.run, staged.plan, storage, Reporter.silent(), scratch, signing_key)
    return Path(published.output.uri.removeprefix("file://"))


def manifest_of(folder: Path) -> dict[str, Any]:
    """manifest.json of a published folder."""
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return manifest


def stage(root_uri: str, model_folder: Path, adapter_folder: Path, *, uid: str = UID, **spec: Any) -> StagedRun:
    """The run of a small job whose data lies below `root_uri`; `spec` goes over the job's sections."""
    sections: dict[str, Any] = {
        "model": {"uri": model_folder.as_uri()},
        "dataset": {"uri": join(root_uri, "data/train.jsonl")},
        "output": {"uri": join(root_uri, "out/contracts")},
        "lora": {"rank": 4, "alpha": 8},
        "provenance": {"requestedBy": "Ada Lovelace", "ticket": "LEGAL-17"},
    }
    for name, value in spec.items():
        sections[name] = {**sections.get(name, {}), **value} if isinstance(value, dict) else value
    run = Run.model_validate({"uid": uid, "namespace": "legal", "name": "contracts", "spec": sections})
    plan = make_plan(run, model_folder)
    return StagedRun(run, plan, make_checks(adapter_folder), model_folder, adapter_folder)


def digest(path: Path, name: str | None = None) -> FileDigest:
    """Name, size and sha256 of a file."""
    data = path.read_bytes()
    return FileDigest(name=name or path.name, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def make_plan(run: Run, model_folder: Path) -> PlanFile:
    """plan.json of a run on the tiny model."""
    weights = model_folder / "model.safetensors"
    small = sorted(path for path in model_folder.rglob("*") if path.is_file() and path.suffix != ".safetensors")
    template = read_chat_template(open_storage(environ={}), run.spec.model.chat_template)
    model = ModelRecord(
        uri=run.spec.model.uri,
        model_type="llama",
        architecture="LlamaForCausalLM",
        small_files=[digest(path, str(path.relative_to(model_folder))) for path in small],
        weight_files=[ListedFile(name=weights.name, size=weights.stat().st_size, etag="1")],
        header_digest="a" * 64,
        fingerprint="b" * 64,
        ignored_files=[],
        base_parameters=25_000,
        license=LicenseFinding(
            id="apache-2.0", evidence="LicenseText", file="LICENSE", sha256="c" * 64, files=["LICENSE"]
        ),
        position_limit=128,
    )
    shard = TokenShard(
        file=FileDigest(name="train-00000.safetensors", size=6, sha256="d" * 64),
        examples=200,
        tokens=12_000,
        trained_tokens=4_000,
    )
    data = TokensIndex(
        digest="e" * 64,
        train=[shard],
        validation=[],
        epoch_examples=200,
        epoch_tokens=12_000,
        epoch_trained_tokens=4_000,
        validation_examples=20,
        longest=118,
        stop_token_id=1,
        pad_token_id=0,
        report={
            "sources": [
                {
                    "uri": run.spec.dataset.uri,
                    "files": [run.spec.dataset.uri],
                    "fileCount": 1,
                    "format": "PromptCompletion",
                    "columns": {},
                    "columnsLeftOut": [],
                    "rows": 230,
                    "weight": 1.0,
                    "validation": False,
                }
            ],
            "rows": 230,
            "duplicates": 10,
            "truncated": 3,
            "lengths": length_report(Counter({length: 1 + (length - 20) % 7 for length in range(20, 119)})),
            "notes": ["3 of 200 examples were longer than 128 tokens and are cut."],
        },
    )
    train = TrainPlan(
        zero_stage=2,
        micro_batch_tokens=512,
        gradient_checkpointing=False,
        packing=True,
        max_length=128,
        total_steps=40,
        steps_per_epoch=13,
        target_modules=[f"model.layers.{layer}.self_attn.{name}" for layer in range(2) for name in MODULES[:4]],
        trainable_parameters=5_000,
        gpu_memory=[
            MemoryPart(name="base weights", bytes=270 << 20, note="bf16, whole on every device"),
            MemoryPart(name="adapter, gradients and optimizer", bytes=78 << 20, note="16 bytes a parameter"),
            MemoryPart(name="saved activations", bytes=410 << 20),
            MemoryPart(name="loss chunk", bytes=96 << 20),
        ],
        host_memory=[],
        local_disk=[],
        gpu_memory_limit=None,
        warnings=["The devices have no memory limit that is known: the plan is not checked against one."],
    )
    return PlanFile(
        model=model,
        tokens_uri=run.layout.tokens,
        data=data,
        plan=train,
        chat_template=None if template is None else digest_bytes("chat_template.jinja", template.encode()),
    )


def make_checks(adapter_folder: Path) -> Checks:
    """checks.json of a run that went well."""
    return Checks(
        step=40,
        total_steps=40,
        best_step=40,
        base_digest="f" * 64,
        weight_files=[FileDigest(name="model.safetensors", size=100_000, sha256="9" * 64)],
        adapter=digest(adapter_folder / "adapter_model.safetensors"),
        adapter_config=digest(adapter_folder / "adapter_config.json"),
        read_back_equal=True,
        frozen_unchanged=True,
        self_tests={
            "segment isolation": "changing segment A left segment B's logits bit-equal",
            "adapter moves": "112 of 112 tensors moved with a finite gradient after step 2",
        },
        base_loss=2.4,
        loss=1.2,
        evaluations=[EvaluationPoint(step=at, loss=loss) for at, loss in ((0, 2.4), (13, 1.6), (26, 1.3), (40, 1.2))],
        exact_match=ExactMatch(rows=20, before=0, after=18),
        samples=[
            SampleAnswer(
                prompt="Order: 3 boxes of <b>nails</b> to Dock 4",
                expected='{"item": "nails", "count": 3}',
                before="I think you want <script>alert(1)</script>",
                after='{"item": "nails", "count": 3}',
            )
        ],
        final_train_loss=1.1,
        train_seconds=83.4,
        world_sizes=[2],
        measured_memory=[MemoryPart(name="peak of rank 0", bytes=790 << 20, note="resident memory of the process")],
        versions={"torch": "2.15.0", "peft": "0.21.2"},
    )


def metrics_lines(first: int, last: int, day: str) -> bytes:
    """metrics.jsonl of the steps `first` to `last`: a loss that falls noisily."""
    noise = random.Random(first)
    rows = [
        {
            "step": step,
            "epoch": step / 13,
            "loss": 1.1 + 1.3 * math.exp(-step / 14) + noise.gauss(0, 0.06),
            "gradNorm": 0.4 + 0.9 * math.exp(-step / 10) + 0.08 * noise.random(),
            "learningRate": 2e-4 * min(1.0, step / 3) * (0.55 + 0.45 * math.cos(math.pi * step / 40)),
            "tokensPerSecond": 900 + 20 * noise.random(),
            "trainedTokensPerSecond": 300.0,
            "paddingShare": 0.03,
            "memoryBytes": 790 << 20,
            "time": f"{day}:{step % 60:02d}+00:00",
        }
        for step in range(first, last + 1)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
