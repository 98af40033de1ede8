"""Grok-1: our class computes what xAI published, and what is not Grok-1 is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from cloister_api.errors import CloisterError
from cloister_api.run import RunSettings
from cloister_api.spec_training import Precision
from cloister_trainer.model.complete import check_complete
from cloister_trainer.model.config import read_config
from cloister_trainer.model.families import FAMILIES
from cloister_trainer.model.folder import inspect_model
from cloister_trainer.model.grok_layout import MODEL_TYPE
from cloister_trainer.prepare.tokenizer import load_tokenizer
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import open_storage
from cloister_trainer.train.model import load_base
from cloister_trainer.train.targets import tensors_in
from support.grok_in_numpy import logits
from support.staged_run import published_folder, stage
from support.tiny_inputs import make_tokenizer
from support.tiny_models import LONGEST, save_tiny_model

TOKENS = [5, 99, 17, 3, 64, 120, 17, 31, 8, 77, 42, 5]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Grok-1 under the names of the converted checkpoints, its norms' scales unlike 1."""
    base = save_tiny_model(tmp_path / "grok", MODEL_TYPE)
    draw = np.random.default_rng(1)
    tensors = load_file(base / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("norm.scale"):
            tensors[name] = draw.uniform(0.5, 1.5, tensor.shape).astype(np.float32)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    make_tokenizer().save_pretrained(base)
    return base


def rewrite(folder: Path, **fields: Any) -> None:
    """config.json with these fields; None takes one out."""
    path = folder / "config.json"
    config = {name: value for name, value in (json.loads(path.read_text()) | fields).items() if value is not None}
    path.write_text(json.dumps(config))


def published_logits(folder: Path) -> np.ndarray:
    weights = {name: tensor.astype(np.float64) for name, tensor in load_file(folder / "model.safetensors").items()}
    return logits(json.loads((folder / "config.json").read_text()), weights, TOKENS)


def logits_of_the_class(folder: Path, precision: Precision = Precision.FP32) -> np.ndarray:
    with torch.no_grad():
        found = load_base(folder, precision, LONGEST).eval()(input_ids=torch.tensor([TOKENS])).logits[0]
    return found.double().numpy()


def test_the_class_has_the_logits_of_the_published_code(folder: Path) -> None:
    published = published_logits(folder)
    assert published.std() > 0.2, "logits so small would agree anyway"
    np.testing.assert_allclose(logits_of_the_class(folder), published, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "field", ["attn_output_multiplier", "max_attn_value", "embedding_multiplier_scale", "output_multiplier_scale"]
)
def test_every_number_of_the_config_has_its_effect(field: str, folder: Path) -> None:
    before = published_logits(folder)
    rewrite(folder, **{field: 1.7})
    published = published_logits(folder)
    assert np.abs(published - before).max() > 1e-2
    np.testing.assert_allclose(logits_of_the_class(folder), published, atol=1e-5, rtol=1e-5)


def test_bf16_differs_from_the_published_code_by_rounding(folder: Path) -> None:
    published = published_logits(folder)
    apart = np.abs(logits_of_the_class(folder, Precision.BF16) - published)
    assert np.median(apart) < 0.05 * published.std(), "beyond rounding; single tokens may visit another expert"


def test_generation_with_a_cache_goes_on_as_without(folder: Path) -> None:
    model = load_base(folder, Precision.FP32, LONGEST).eval()
    with torch.no_grad():
        whole = model(input_ids=torch.tensor([TOKENS])).logits
        first = model(input_ids=torch.tensor([TOKENS[:7]]), use_cache=True)
        rest = model(input_ids=torch.tensor([TOKENS[7:]]), past_key_values=first.past_key_values, logits_to_keep=2)
    torch.testing.assert_close(rest.logits, whole[:, -2:], atol=1e-5, rtol=1e-5)


def test_a_conversion_with_other_norm_names_and_no_model_type_is_the_same_model(folder: Path) -> None:
    before = logits_of_the_class(folder)
    tensors = load_file(folder / "model.safetensors")
    renamed = {name.replace("norm.scale", "norm.weight"): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    code = {"AutoConfig": "configuration_grok1.Grok1Config", "AutoModelForCausalLM": "modeling_grok1.Grok1ForCausalLM"}
    rewrite(folder, model_type=None, architectures=["Grok1ModelForCausalLM"], auto_map=code)
    assert np.array_equal(logits_of_the_class(folder), before)
    assert load_tokenizer(folder, None).encode("w3 w4") == [3, 4]
    inspected = inspect(folder)
    assert inspected.record.model_type == MODEL_TYPE
    assert inspected.record.base_parameters == sum(tensor.size for tensor in tensors.values())


def inspect(folder: Path) -> Any:
    scratch = folder.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    return inspect_model(open_storage(), folder.as_uri(), scratch, "apache-2.0", RunSettings(), Reporter.silent())


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "no embedding multiplier": ({"embedding_multiplier_scale": None}, "has no embedding_multiplier_scale"),
    "no number of experts": ({"num_experts": None}, "has no num_experts"),
    "capped router": ({"router_logit_softcapping": 30.0}, "has router_logit_softcapping 30.0, which Grok-1 as it was"),
    "dense MLP beside the experts": ({"residual_moe": True}, "has residual_moe True"),
    "other positions": ({"rope_type": "yarn"}, "has rope_type 'yarn'"),
    "positions of long texts": ({"rope_parameters": {"rope_type": "yarn"}}, "has rope_parameters that change"),
    "other heads": ({"head_dim": 16}, "has head_dim 16, but hidden_size of Grok-1 is num_attention_heads times it"),
    "Grok-2": ({"model_type": "git", "architectures": ["Grok1ForCausalLM"]}, "Grok-2 is another architecture"),
    "quantised": ({"quantization_config": {"quant_method": "fp8"}}, "is quantised (fp8)"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_not_the_published_grok_1_is_refused(name: str, folder: Path) -> None:
    fields, sentence = REFUSALS[name]
    rewrite(folder, **fields)
    with pytest.raises(CloisterError) as refused:
        inspect(folder)
    assert sentence in refused.value.message


def test_the_published_pickles_are_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "ckpt-0").mkdir()
    for number in range(3):
        (tmp_path / "ckpt-0" / f"tensor{number:05d}_000").write_bytes(b"cos\nsystem\n")
    with pytest.raises(CloisterError, match=r"in pickles, .* never loads them. Take a copy that was converted"):
        inspect(tmp_path)
    with pytest.raises(CloisterError, match="in pickles"):
        inspect(tmp_path / "ckpt-0")


def test_a_weight_that_is_missing_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.moe_block.experts.2.linear_v.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CloisterError, match=r"lack model\.layers\.1\.moe_block\.experts\.gate_up_proj"):
        check_complete(read_config(folder), tensors_in(folder, ["model.safetensors"]))


def test_the_config_is_read_under_the_name_that_the_class_has(folder: Path) -> None:
    for other in ("grok", "grok1", "grok_1"):
        rewrite(folder, model_type=other)
        assert read_config(folder)["model_type"] == MODEL_TYPE


def test_the_model_card_says_where_the_adapter_loads(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(environ={})
    staged = stage(tmp_path.as_uri(), tiny_llama, tiny_adapter)
    plain = (published_folder(staged, storage, tmp_path / "plain") / "README.md").read_text()
    assert "cloister_trainer.model" not in plain and "--trust-remote-code" not in plain
    family = replace(FAMILIES["llama"], own_class=FAMILIES[MODEL_TYPE].own_class)
    monkeypatch.setitem(FAMILIES, "llama", family)
    staged = stage((tmp_path / "own").as_uri(), tiny_llama, tiny_adapter)
    card = (published_folder(staged, storage, tmp_path / "scratch") / "README.md").read_text()
    assert "Plain transformers has no class for this base model" in card
    assert "from cloister_trainer.model.grok import register\nfrom peft import PeftModel" in card
    assert "\nregister()\nmodel = PeftModel.from_pretrained(" in card
    assert "vllm serve BASE --trust-remote-code --enable-lora" in card
