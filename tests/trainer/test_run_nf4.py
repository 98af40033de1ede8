"""Runs over a base in 4 bits: stages and ranks, a kill, and a job from its rows to the published folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file
from transformers import LlamaConfig

from cloister_api.events import CheckpointSaved
from cloister_api.job import FineTuneJobSpec
from cloister_api.run import Run, RunSettings
from cloister_trainer.prepare.main import prepare
from cloister_trainer.publish.main import publish
from cloister_trainer.records import PlanFile
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import open_storage
from cloister_trainer.train.messages import Ended
from cloister_trainer.workspace import Workspace
from support.frozen_base import assert_frozen
from support.qlora import save_wide_model, stock_base
from support.staged_run import make_model, manifest_of
from support.tiny_inputs import make_tokenizer, record_of
from support.tiny_ranks import run_ranks
from support.tiny_run import UID, TinyRun, make_run

NF4 = {"rank": 4, "alpha": 8, "quantization": "NF4"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose widths bitsandbytes takes, as `make_run` takes it."""
    folder = tmp_path_factory.mktemp("inputs")
    model = save_wide_model(folder / "model", "llama", torch.bfloat16)
    make_tokenizer().save_pretrained(model)
    (folder / "model.json").write_text(record_of(model).model_dump_json())
    return folder


def test_stage_0_on_one_rank_and_1_and_2_on_two_train_the_same_adapter(tmp_path: Path, inputs: Path) -> None:
    runs = [
        make_run(tmp_path / f"{stage}-{ranks}", inputs=inputs, stage=stage, workers=ranks, lora=NF4, validation=8)
        for stage, ranks in ((2, 2), (0, 1), (1, 2))
    ]
    for tiny in runs:
        assert run_ranks(tiny, tiny.run.spec.distribution.workers).end() == Ended("finished", 6)
        assert_frozen(tiny.checks(), inputs / "model", in_4_bits=len(tiny.plan.plan.target_modules))
        assert tiny.checks()["loss"] < tiny.checks()["baseLoss"]
    adapters = [load(tiny.adapter()) for tiny in runs]
    curves = [[row["loss"] for row in tiny.metrics()] for tiny in runs]
    assert max(float(tensor.abs().max()) for tensor in adapters[0].values()) > 0.01
    for adapter, curve in zip(adapters[1:], curves[1:], strict=True):
        assert curve == pytest.approx(curves[0], abs=1e-5)
        for name, tensor in adapters[0].items():
            torch.testing.assert_close(adapter[name], tensor, atol=1e-4, rtol=0)


def test_killed_and_started_again_it_ends_with_the_same_bits(tmp_path: Path, inputs: Path) -> None:
    settings: dict[str, Any] = {
        "inputs": inputs,
        "workers": 2,
        "steps": 12,
        "lora": NF4,
        "training": {"precision": "BF16"},
        "checkpoint": {"interval": "0s"},
    }
    whole, broken = make_run(tmp_path / "whole", **settings), make_run(tmp_path / "broken", **settings)
    assert run_ranks(whole, 2).end() == Ended("finished", 12)

    def kill_after_four(message: Any, act: Any) -> None:
        if isinstance(message, CheckpointSaved) and message.step >= 4:
            act("kill")

    assert run_ranks(broken, 2, kill_after_four).ends == {}
    assert run_ranks(broken, 2, attempt=2).end() == Ended("finished", 12)
    assert broken.adapter() == whole.adapter()
    assert [row["loss"] for row in broken.metrics()] == [row["loss"] for row in whole.metrics()]


def test_a_job_from_its_rows_to_the_published_folder(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
    )
    model = make_model(tmp_path / "tiny-llama", config)
    rows = [{"prompt": f"w{i} w{i + 1}", "completion": f" w{i + 2} w{i + 3}"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {
        "model": {"uri": model.as_uri()},
        "dataset": {"uri": (tmp_path / "rows.jsonl").as_uri()},
        "output": {"uri": (tmp_path / "out").as_uri(), "mergedModel": True},
        "lora": NF4,
        "training": {"maxSteps": 4, "globalBatchSize": 8, "learningRate": 1e-2},
        "distribution": {"gpusPerWorker": 0},
    }
    settings = RunSettings(require_enforced_egress=False)
    run = Run(uid=UID, namespace="local", name="orders", spec=FineTuneJobSpec.model_validate(spec), settings=settings)
    storage, reporter = open_storage(environ={}), Reporter.silent()

    plan = prepare(run, storage, reporter, Workspace(tmp_path / "scratch"), None)
    assert isinstance(plan, PlanFile)
    assert {part.note for part in plan.plan.host_memory if part.name == "base model"} == {"NF4"}
    tiny = TinyRun(tmp_path, run, plan)
    assert run_ranks(tiny).end() == Ended("finished", 4)
    trained = load(tiny.adapter())
    published = publish(run, plan, storage, reporter, tmp_path / "publish")
    folder = Path(published.output.uri.removeprefix("file://"))

    manifest, card = manifest_of(folder), (folder / "README.md").read_text()
    assert manifest["spec"]["lora"]["quantization"] == "NF4"
    assert manifest["versions"]["bitsandbytes"]
    assert "| Base in training | 4 bits (NF4, double quantisation), multiplied in bfloat16 |" in card
    assert "bnb_4bit_compute_dtype=torch.bfloat16," in card
    assert "That base is the one that is stored, not the one in 4 bits" in card
    assert_reloads_in_stock_peft(model, folder, trained)
    assert_merged_into_what_is_stored(model, folder, trained)


def assert_reloads_in_stock_peft(model: Path, folder: Path, trained: dict[str, torch.Tensor]) -> None:
    from peft import PeftModel, get_peft_model_state_dict

    loaded = PeftModel.from_pretrained(stock_base(model, torch.bfloat16), str(folder))
    state = get_peft_model_state_dict(loaded, save_embedding_layers=False)
    assert state.keys() == trained.keys()
    assert all(torch.equal(state[name].float(), trained[name]) for name in trained)
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        adapted = loaded.eval()(ids).logits
        with loaded.disable_adapter():
            assert not torch.equal(loaded(ids).logits, adapted)


def assert_merged_into_what_is_stored(model: Path, folder: Path, trained: dict[str, torch.Tensor]) -> None:
    base, merged = load_file(model / "model.safetensors"), load_file(folder / "merged" / "model.safetensors")
    for name, weight in base.items():
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{prefix}.lora_A.weight" in trained:
            change = 2 * trained[f"{prefix}.lora_B.weight"] @ trained[f"{prefix}.lora_A.weight"]
            torch.testing.assert_close(merged[name], weight + change)
        else:
            assert torch.equal(merged[name], weight)
    assert sum(not torch.equal(base[name], merged[name]) for name in base) == len(trained) // 2
