"""The merged model is the base with W + scaling * B A: stock transformers finds the adapter model's logits in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cloister_api.spec_training import Lora
from cloister_trainer.records import FileDigest
from cloister_trainer.train import merged_files
from cloister_trainer.train.attention import stock_attention
from cloister_trainer.train.checkpoint import digest_of
from cloister_trainer.train.merge import adapter_deltas
from cloister_trainer.train.merged_files import write_merged
from support.tiny_models import adapter_state, all_with_experts, save_tiny_model, with_adapter

IDS = torch.arange(3, 43)[None]


MIXTURES = ("mixtral", "glm4_moe", "deepseek_v3", "qwen2_moe", "phimoe", "gpt_oss")


@pytest.mark.parametrize(
    ("model_type", "lora"),
    [
        ("llama", Lora(rank=4, alpha=6)),
        ("phi3", Lora(rank=4, alpha=8, rank_stabilized=True)),
        ("phi", Lora(rank=4, alpha=8)),
        *((mixture, all_with_experts()) for mixture in MIXTURES),
    ],
)
def test_the_merged_model_has_the_adapter_models_logits(model_type: str, lora: Lora, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", model_type)
    module = with_adapter(base, lora, random_b=True)
    merged = merge(module, base, model_type, tmp_path / "merged")

    from transformers import AutoModelForCausalLM

    stock = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    with torch.no_grad(), module.evaluating(), stock_attention(module.base):
        expected = module.model(input_ids=IDS, use_cache=False).logits
        found = stock(input_ids=IDS, use_cache=False).logits
    assert float((found - expected).abs().max()) < 1e-4


@pytest.mark.parametrize("model_type", MIXTURES)
def test_experts_in_pieces_of_a_few_rows_are_merged_as_whole_ones(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_tiny_model(tmp_path / "base", model_type)
    module = with_adapter(base, all_with_experts(), random_b=True)
    whole = merge(module, base, model_type, tmp_path / "whole")
    monkeypatch.setattr(merged_files, "PIECE_BYTES", 1000)  # 7 rows of 32 float32, or 3 of 64
    pieces = merge(module, base, model_type, tmp_path / "pieces")
    for path in whole.glob("*.safetensors"):
        expected, found = load_file(path), load_file(pieces / path.name)
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=0, msg=name)


def test_files_types_and_untouched_tensors_stay(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "llama", dtype=torch.bfloat16)
    split_in_two(base)
    module = with_adapter(base, random_b=True)
    merged = merge(module, base, "llama", tmp_path / "merged")

    names = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(names) == 2
    for name in names:
        before, after = load_file(base / name), load_file(merged / name)
        assert before.keys() == after.keys()
        assert (base / name).stat().st_size == (merged / name).stat().st_size
        for tensor in before:
            assert after[tensor].dtype is torch.bfloat16
            assert torch.equal(before[tensor], after[tensor]) == ("_proj" not in tensor), tensor


def test_a_merged_file_may_be_deleted_before_the_next_is_written(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "llama")
    split_in_two(base)
    module = with_adapter(base, random_b=True)
    deltas = adapter_deltas(module.model, adapter_state(module.model))
    most = 0
    for file in write_merged(base, weights(base), "llama", deltas, tmp_path / "merged"):
        most = max(most, len(list((tmp_path / "merged").iterdir())))
        (tmp_path / "merged" / file.name).unlink()
    assert most == 1


def merge(module: object, base: Path, model_type: str, folder: Path) -> Path:
    model = module.model  # type: ignore[attr-defined]
    deltas = adapter_deltas(model, adapter_state(model))
    written = list(write_merged(base, weights(base), model_type, deltas, folder))
    assert written == weights(folder)
    for path in base.glob("*.json"):
        shutil.copy(path, folder)
    return folder


def weights(folder: Path) -> list[FileDigest]:
    return [digest_of(path) for path in sorted(folder.glob("*.safetensors"))]


def split_in_two(folder: Path) -> None:
    """Store the model as two files with an index."""
    import json

    from safetensors.torch import save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = list(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in halves.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
