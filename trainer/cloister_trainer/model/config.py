"""config.json: parsed as transformers knows the model, and refused where Cloister cannot train what it describes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.model.families import FAMILIES, SAME_AS, SAME_BY_ARCHITECTURE
from cloister_trainer.model.grok_layout import MODEL_TYPE as GROK_1
from cloister_trainer.model.grok_layout import why_not_grok_1
from cloister_trainer.model.small_files import CONFIG
from cloister_trainer.model.tensors import TensorInfo
from cloister_trainer.model.unsupported import UNSUPPORTED

MAX_LAYERS = 1024
MAX_POSITIONS = 1 << 30

CONVERSIONS: dict[str, str] = {
    "fp8": "Convert it to bf16 first, for DeepSeek with the fp8_cast_bf16.py of its repository, for others by "
    "AutoModelForCausalLM.from_pretrained(…, quantization_config=FineGrainedFP8Config(dequantize=True)) and "
    "save_pretrained, and use the bf16 copy.",
    "mxfp4": "Convert it to bf16 first by AutoModelForCausalLM.from_pretrained(…, "
    "quantization_config=Mxfp4Config(dequantize=True)) and save_pretrained, and use the bf16 copy.",
    "gptq": "Use the original bf16 model that it was made from.",
    "awq": "Use the original bf16 model that it was made from.",
    "bitsandbytes": "Use the original bf16 model that it was made from, or load this one, call dequantize() and "
    "save_pretrained.",
}
"""What to do about a quantised checkpoint, by quant_method."""
OTHER_CONVERSION = "Use the bf16 model that it was made from."
PACKED_SUFFIXES = {
    "_blocks": "mxfp4",
    ".qweight": "gptq",
    ".weight_packed": "compressed-tensors",
    ".quant_state.bitsandbytes__nf4": "bitsandbytes",
    ".quant_state.bitsandbytes__fp4": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_scale_inv": "fp8",
}
"""Endings of tensor names that only quantised checkpoints have."""


def parse_config(text: bytes, uri: str) -> dict[str, Any]:
    """config.json as an object, under the model_type that transformers has for the architecture.

    Raises ModelUnsupported when it is not JSON or not an object.
    """
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise _unsupported(f"{uri} is not JSON{where}. Upload the model's own config.json.") from None
    if not isinstance(config, dict):
        raise _unsupported(f"{uri} holds a JSON {_kind(config)}, not an object. Upload the model's own config.json.")
    named = config.get("architectures")
    by_class = SAME_BY_ARCHITECTURE.get(str(named[0])) if isinstance(named, list) and named else None
    same = SAME_AS.get(str(config.get("model_type"))) if config.get("model_type") else by_class
    if same is None:
        return config
    renamed = {name: value for name, value in config.items() if name != "auto_map"}  # names code of the repository
    return renamed | {"model_type": same}


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a fetched model that prepare has checked."""
    return parse_config((folder / CONFIG).read_bytes(), (folder / CONFIG).as_uri())


def native_config(config: Mapping[str, Any]) -> Any:
    """transformers' own configuration object for the parsed config.json, as its AutoConfig makes it of a folder."""
    from transformers import AutoConfig

    make_known(config["model_type"])
    return type(AutoConfig.for_model(config["model_type"])).from_dict(dict(config))


def make_known(model_type: str) -> None:
    """Register the class of ours with transformers' Auto classes where transformers has none for the model_type."""
    module = FAMILIES[model_type].own_class
    if module is not None:
        import_module(module).register()


def position_switch(config: Mapping[str, Any]) -> int | None:
    """The length above which one example changes the rotary positions of all that share its row (LongRoPE), or None.

    transformers takes the short or the long frequencies for a whole row, by its longest example.
    """
    rope = getattr(native_config(config), "rope_parameters", None) or {}
    kinds = [rope, *rope.values()]  # some families have parameters for each kind of layer
    limits = [
        kind["original_max_position_embeddings"]
        for kind in kinds
        if isinstance(kind, dict) and kind.get("rope_type") == "longrope"
    ]
    return min(limits, default=None)


def check_config(config: Mapping[str, Any], uri: str) -> None:
    """Refuse what cannot be trained: unknown and unsupported families, encoders, quantised or absurd models.

    Raises ModelUnsupported; what transformers' own configuration class refuses is refused with its first sentence.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise _unsupported(f"{uri} has no model_type. Use a model in Hugging Face format.")
    _check_architecture(config, model_type, uri)
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise quantised(str(method or "an unknown method"), f"{uri} has a quantization_config")
    _whole_number(config, "num_hidden_layers", MAX_LAYERS, uri)
    _whole_number(config, "max_position_embeddings", MAX_POSITIONS, uri)
    for field in ("hidden_size", "vocab_size", "num_attention_heads"):
        _whole_number(config, field, MAX_POSITIONS, uri)
    _check_native(config, uri)


def check_not_quantised(tensors: Mapping[str, TensorInfo], uri: str) -> None:
    """Refuse FP8, FP4 and packed integer weights by their dtype or their names."""
    for name, info in tensors.items():
        method = next((method for ending, method in PACKED_SUFFIXES.items() if name.endswith(ending)), None)
        if info.dtype.startswith("F8"):
            method = "fp8"
        elif info.dtype.startswith(("F4", "F6")):
            method = "mxfp4"
        elif method is None and len(info.shape) >= 2 and info.dtype in ("I8", "U8", "I32"):
            method = "packed integers"
        if method is not None:
            raise quantised(method, f"the weights at {uri} hold {name} with dtype {info.dtype}")


def quantised(method: str, evidence: str) -> CloisterError:
    """The refusal of a quantised checkpoint, with its conversion."""
    known = next((key for key in CONVERSIONS if key in method.lower()), None)
    advice = CONVERSIONS[known] if known else OTHER_CONVERSION
    sentence = f"This checkpoint is quantised ({method}): {evidence}. Adapters are trained over bf16 weights. {advice}"
    return _unsupported(sentence)


def _check_architecture(config: Mapping[str, Any], model_type: str, uri: str) -> None:
    known = UNSUPPORTED.get(model_type.lower())
    named = config.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise _unsupported(
            f"{uri} has architectures that are not a list of class names. Upload the model's own config.json."
        )
    if any(name.startswith("Grok1") for name in named) and model_type != GROK_1:
        known = UNSUPPORTED["grok-2"]
    if known is not None:
        raise _unsupported(f"{uri} has model_type {model_type}. {known.sentence}")
    if model_type not in FAMILIES:
        raise _unsupported(
            f"{uri} has model_type {model_type}, which Cloister cannot train. It can train: {', '.join(FAMILIES)}."
        )
    if named and not any(name.endswith("ForCausalLM") for name in named):
        raise _unsupported(
            f"{uri} describes {named[0]}, which is not a causal language model. Use the …ForCausalLM checkpoint."
        )
    if model_type == GROK_1 and (why := why_not_grok_1(config)):
        raise _unsupported(f"{uri} {why}. {UNSUPPORTED['grok-2'].instead}")


def _check_native(config: Mapping[str, Any], uri: str) -> None:
    """What transformers' own configuration class thinks of it."""
    from transformers import AutoConfig

    make_known(config["model_type"])
    fields = {name: value for name, value in config.items() if name not in ("model_type", "auto_map")}
    try:
        AutoConfig.for_model(config["model_type"], **fields)
    except Exception as error:  # noqa: BLE001 - any class of error that a third party's validation raises
        raise _unsupported(
            f"{uri} is not a configuration that transformers accepts for {config['model_type']}: "
            f"{_first_line(error)} Upload the model's own config.json."
        ) from None


def _whole_number(config: Mapping[str, Any], field: str, most: int, uri: str) -> None:
    value = config.get(field)
    if type(value) is not int or not 1 <= value <= most:
        found = f"{value}"[:40] if type(value) in (int, float) else _kind(value)
        raise _unsupported(
            f"{uri} has {field} {found}; a whole number from 1 to {most:,} was expected. "
            "Upload the model's own config.json."
        )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)[:300] or type(error).__name__
    return text if text.endswith(".") else f"{text}."


def _kind(value: object) -> str:
    kinds = {list: "array", str: "string", int: "number", float: "number", bool: "boolean", dict: "object"}
    return kinds.get(type(value), "null")


def _unsupported(sentence: str) -> CloisterError:
    return CloisterError(FailureReason.MODEL_UNSUPPORTED, sentence)
