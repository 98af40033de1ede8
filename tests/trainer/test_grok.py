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
from cloister_trainer.model.config import make_known, read_config
from cloister_trainer.model.families import FAMILIES
from cloister_trainer.model.folder import inspect_model
from cloister_trainer.model.grok_config import Grok1Config
from cloister_trainer.model.grok_layout import MODEL_TYPE, REQUIRED, why_not_grok_1
from cloister_trainer.prepare.tokenizer import load_tokenizer
from cloister_trainer.publish.main import publish
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import open_storage
from cloister_trainer.train.model import load_base
from cloister_trainer.train.targets import tensors_in
from support.grok_in_numpy import logits
from support.pages import blocks
from support.publishing import with_merged
from support.seaweedfs import SeaweedFS
from support.staged_run import make_adapter, stage
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
    "other base of positions": ({"rope_theta": 500_000.0}, "has rope_theta 500000.0"),
    "other base among the parameters": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        "has rope_parameters that change",
    ),
    "positions of a part of the head": ({"partial_rotary_factor": 0.5}, "has partial_rotary_factor 0.5"),
    "the exact GELU": ({"hidden_act": "gelu"}, "has hidden_act 'gelu', which Grok-1 as it was"),
    "a head of its own": ({"tie_word_embeddings": False}, "has tie_word_embeddings False"),
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


def shown(language: str) -> str:
    """The one block of this language on Grok-1's page."""
    (block,) = [each for each in blocks(language) if each.page.name == "grok-1.md"]
    return block.text


def test_the_page_shows_the_config_of_the_published_model() -> None:
    config = json.loads(shown("json"))
    assert why_not_grok_1(config) is None
    defaults = Grok1Config(architectures=config["architectures"])
    assert {name: getattr(defaults, name) for name in config} == config
    assert set(REQUIRED) <= config.keys()


def test_the_lines_of_the_page_load_an_adapter(folder: Path, tmp_path: Path) -> None:
    make_known(MODEL_TYPE)
    made = make_adapter(folder, tmp_path / "adapter", target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    names: dict[str, Any] = {"BASE": folder, "ADAPTER": tmp_path / "adapter"}
    exec(shown("python"), names)
    with torch.no_grad():
        tokens = torch.tensor([TOKENS])
        torch.testing.assert_close(names["model"](input_ids=tokens).logits, made(input_ids=tokens).logits)


def test_the_model_card_says_where_the_adapter_loads(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path, seaweedfs: SeaweedFS, s3_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Only lines that can work: KServe and merged/, which other models' cards show, lack the flag and the code."""
    storage = open_storage(environ=seaweedfs.environment())

    def card(root_uri: str) -> str:
        staged = with_merged(stage(root_uri, tiny_llama, tiny_adapter, output={"mergedModel": True}), storage)
        published = publish(staged.run, staged.plan, storage, Reporter.silent(), tmp_path / "scratch", None)
        return storage.read(f"{published.output.uri}/README.md").decode()

    plain = card(f"{s3_uri}/plain")
    assert "cloister_trainer.model" not in plain and "--trust-remote-code" not in plain
    assert "kind: LLMInferenceService" in plain and "vllm serve ADAPTER/merged" in plain
    family = replace(FAMILIES["llama"], own_class=FAMILIES[MODEL_TYPE].own_class)
    monkeypatch.setitem(FAMILIES, "llama", family)
    own = card(f"{s3_uri}/own")
    assert "Plain transformers has no class for this base model" in own
    assert "from cloister_trainer.model.grok import register\nfrom peft import PeftModel" in own
    assert "\nregister()\nmodel = PeftModel.from_pretrained(" in own
    assert "runs the Python code that lies in BASE: look at that code first:\n\n```sh\n" in own
    assert "vllm serve BASE --trust-remote-code --enable-lora" in own
    assert "LLMInferenceService" not in own and "vllm serve ADAPTER/merged" not in own
    assert "merged into it, but none of that code." in own
