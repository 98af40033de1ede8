"""Every bad model folder is refused with a sentence that says what to do."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from support.model_folders import (
    HIDDEN,
    VOCABULARY,
    config,
    inspected,
    llama_tensors,
    safetensors_bytes,
    write_llama,
)


def refusal(folder: Path, scratch: Path, stated: str | None = None) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        inspected(folder, scratch, stated)
    return caught.value


def test_nothing_at_the_uri(tmp_path: Path) -> None:
    error = refusal(tmp_path / "nowhere", tmp_path / "scratch")
    assert error.reason is FailureReason.MODEL_NOT_FOUND
    assert "There is nothing at file://" in error.message
    assert "Correct model.uri" in error.message


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    write_llama(tmp_path / "llama")
    error = refusal(tmp_path / "llama" / "model.safetensors", tmp_path / "scratch")
    assert error.reason is FailureReason.MODEL_NOT_FOUND
    assert "is a file" in error.message


Break = Callable[[Path], object]


def rewritten(**fields: Any) -> Break:
    return lambda folder: (folder / "config.json").write_text(json.dumps(config(**fields)))


def weights(tensors: dict[str, Any]) -> Break:
    return lambda folder: (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))


def raw_weights(change: Callable[[bytes], bytes]) -> Break:
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return apply


def header_replaced(text: bytes) -> Break:
    return raw_weights(lambda _: len(text).to_bytes(8, "little") + text)


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def only_gguf(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.Q4_K_M.gguf")


def one_level_down(folder: Path) -> None:
    (folder / "hf").mkdir()
    for path in list(folder.iterdir()):
        if path.is_file():
            path.rename(folder / "hf" / path.name)


def index(weight_map: object) -> Break:
    return lambda folder: (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


ONE_TENSOR = {"model.embed_tokens.weight": "model.safetensors"}

REFUSALS: dict[str, tuple[Break, list[str]]] = {
    "no config": (lambda f: (f / "config.json").unlink(), ["has no config.json", "whole folder"]),
    "model one level down": (one_level_down, ["has no config.json", "There is one in", "/hf: is that the model?"]),
    "config not JSON": (
        lambda f: (f / "config.json").write_text('{\n"model_type": llama'),
        ["config.json is not JSON (line 2)"],
    ),
    "config not UTF-8": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), ["is not JSON"]),
    "config an array": (lambda f: (f / "config.json").write_text("[]"), ["holds a JSON array, not an object"]),
    "config too large": (
        lambda f: (f / "config.json").write_text("x" * (2 << 20)),
        ["2,097,152 bytes", "at most 1,048,576"],
    ),
    "config deeply nested": (lambda f: (f / "config.json").write_text("[" * 100_000), ["is not JSON"]),
    "no model_type": (rewritten(model_type=None), ["has no model_type"]),
    "unknown model_type": (rewritten(model_type="mamba"), ["model_type mamba, which Cloister cannot train", "mixtral"]),
    "Grok-1 without its numbers": (
        rewritten(model_type="grok-1"),
        ["has no attn_output_multiplier", "docs/grok-1.md"],
    ),
    "Grok-1 by architecture": (
        rewritten(model_type=None, architectures=["Grok1ModelForCausalLM"]),
        ["has no attn_output_multiplier"],
    ),
    "Grok-2": (
        rewritten(model_type="git", architectures=["Grok1ForCausalLM"]),
        ["Grok-2 is another architecture", "or another large mixture of experts: Mixtral 8x22B"],
    ),
    "MiniMax with its own code": (
        rewritten(model_type="minimax_m1", architectures=["MiniMaxM1ForCausalLM"]),
        ["only with code from its repository", "MiniMax-M1-80k-hf"],
    ),
    "Phi-4-multimodal": (rewritten(model_type="phi4mm"), ["vision tower", "Use Phi-4-mini"]),
    "Kimi K2.5": (rewritten(model_type="kimi_k25"), ["Kimi K2.5 with its vision tower"]),
    "vision model": (rewritten(model_type="gemma3"), ["vision tower", "gemma3_text"]),
    "architectures not a list": (rewritten(architectures=True), ["not a list of class names"]),
    "not causal": (rewritten(architectures=["LlamaForSequenceClassification"]), ["not a causal language model"]),
    "negative size": (rewritten(hidden_size=-4096), ["hidden_size -4096", "from 1 to"]),
    "huge number": (rewritten(num_hidden_layers=10**30), ["num_hidden_layers 1000000", "from 1 to 1,024"]),
    "text for a number": (rewritten(vocab_size="96"), ["vocab_size string"]),
    "no position limit": (rewritten(max_position_embeddings=None), ["max_position_embeddings null"]),
    "what transformers refuses": (
        rewritten(num_key_value_heads="two"),
        ["not a configuration that transformers accepts for llama", "num_key_value_heads"],
    ),
    "FP8 by config": (
        rewritten(quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]}),
        ["quantised (fp8)", "Convert it to bf16", "fp8_cast_bf16.py"],
    ),
    "MXFP4": (
        rewritten(quantization_config={"quant_method": "mxfp4"}),
        ["quantised (mxfp4)", "Mxfp4Config(dequantize=True)"],
    ),
    "GPTQ": (rewritten(quantization_config={"quant_method": "gptq"}), ["quantised (gptq)", "original bf16 model"]),
    "AWQ": (rewritten(quantization_config={"quant_method": "awq"}), ["quantised (awq)"]),
    "bitsandbytes": (
        rewritten(quantization_config={"quant_method": "bitsandbytes"}),
        ["quantised (bitsandbytes)", "call dequantize()"],
    ),
    "a quantisation nobody knows": (rewritten(quantization_config=[]), ["quantised (an unknown method)"]),
    "FP8 by dtype": (weights(llama_tensors(dtype="F8_E4M3")), ["quantised (fp8)", "with dtype F8_E4M3"]),
    "GPTQ by names": (
        weights(llama_tensors() | {"model.layers.0.self_attn.q_proj.qweight": ("I32", (4, 32))}),
        ["quantised (gptq)", "q_proj.qweight"],
    ),
    "MXFP4 by names": (
        weights(llama_tensors() | {"model.layers.0.mlp.experts.down_proj_blocks": ("U8", (4, 32))}),
        ["quantised (mxfp4)"],
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), ["has no tokenizer", "vocab.json with merges.txt"]),
    "only pickles": (only_pickles, ["pickles only (pytorch_model.bin)", ".save_pretrained"]),
    "only GGUF": (only_gguf, ["neither model.safetensors.index.json nor model.safetensors", "model.Q4_K_M.gguf"]),
    "index not JSON": (
        lambda f: (f / "model.safetensors.index.json").write_text("{"),
        ["index.json is not JSON with a weight_map"],
    ),
    "index without a map": (index({}), ["is not JSON with a weight_map"]),
    "index maps to numbers": (index({"a": 1}), ["maps tensors to something else than file names"]),
    "index names a missing file": (
        index({"a": "model-00001-of-00002.safetensors"}),
        ["names 1 files, of which 1 are not there: model-00001-of-00002.safetensors"],
    ),
    "index reaches out of the folder": (
        index({"a": "../other/model.safetensors"}),
        ["not a safetensors file beside it"],
    ),
    "index names a pickle": (index({"a": "pytorch_model.bin"}), ["not a safetensors file beside it"]),
    "index names a tensor that is not there": (
        index({**ONE_TENSOR, "model.layers.9.mlp.up_proj.weight": "model.safetensors"}),
        ["names 1 tensors that its files do not hold: model.layers.9.mlp.up_proj.weight"],
    ),
    "truncated": (raw_weights(lambda data: data[:-100]), ["it is truncated", "its header needs"]),
    "truncated in the header": (raw_weights(lambda data: data[:200]), ["do not give the length of a header"]),
    "empty weights": (raw_weights(lambda _: b""), ["it has 0 bytes"]),
    "longer than its header": (raw_weights(lambda data: data + b"x"), ["longer than its header says"]),
    "an LFS pointer": (
        raw_weights(lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
        ["do not give the length of a header"],
    ),
    "header not JSON": (header_replaced(b"{{{{"), ["its header is not JSON"]),
    "header an array": (header_replaced(b"[]"), ["not a JSON object"]),
    "header without a dtype": (header_replaced(b'{"a": {"shape": [1], "data_offsets": [0, 2]}}'), ["a has no dtype"]),
    "header with a negative shape": (
        header_replaced(b'{"a": {"dtype": "BF16", "shape": [-1], "data_offsets": [0, 2]}}'),
        ["a has no valid shape"],
    ),
    "header with a wrong size": (
        header_replaced(b'{"a": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 2]}}'),
        ["tensor a of shape [3] and dtype BF16 has 2 bytes"],
    ),
    "overlapping tensors": (
        header_replaced(
            b'{"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},'
            b' "b": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}}'
        ),
        ["leave a gap or overlap at byte 1"],
    ),
    "weights of another size": (
        rewritten(hidden_size=2 * HIDDEN),
        [f"hidden_size {2 * HIDDEN}", f"shape [{VOCABULARY}, {HIDDEN}]", "same model"],
    ),
    "weights of fewer layers": (rewritten(num_hidden_layers=5), ["num_hidden_layers 5", "attention for layer 2"]),
    "weights of another architecture": (
        weights({"encoder.weight": ("BF16", (4, 4))}),
        ["no model.embed_tokens.weight"],
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_bad_folder_is_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    damage, expected = REFUSALS[case]
    folder = write_llama(tmp_path / "llama")
    damage(folder)
    error = refusal(folder, tmp_path / "scratch")
    assert error.reason is FailureReason.MODEL_UNSUPPORTED
    for words in expected:
        assert words in error.message
    assert error.message.endswith(".") or error.message.endswith("?")


def test_two_files_with_the_same_tensor(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "llama", files=2)
    second = folder / "model-00002-of-00002.safetensors"
    second.write_bytes(safetensors_bytes(llama_tensors()))
    error = refusal(folder, tmp_path / "scratch")
    assert "which another file holds too" in error.message


def test_absurd_configs_never_crash(tmp_path: Path) -> None:
    """Whatever a field holds, the answer is a model or a sentence."""
    draw = random.Random(0)
    absurd: list[Any] = [None, -1, 0, 1e308, 10**40, "", "x" * 1000, [], {}, [[]], True, float("nan"), {"a": {"b": []}}]
    folder = write_llama(tmp_path / "llama")
    fields = [
        *config(),
        "rope_scaling",
        "rope_parameters",
        "head_dim",
        "tie_word_embeddings",
        "sliding_window",
        "dtype",
    ]
    refused = 0
    for _ in range(150):
        changed = config() | {draw.choice(fields): draw.choice(absurd) for _ in range(draw.randint(1, 3))}
        (folder / "config.json").write_text(json.dumps(changed))
        try:
            inspected(folder, tmp_path / "scratch")
        except CloisterError as error:
            refused += 1
            assert error.reason is FailureReason.MODEL_UNSUPPORTED
    assert refused > 50
