"""Model folders as people have them: real configs, and real safetensors files of zeros, written without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from cloister_api.run import RunSettings
from cloister_trainer.model.folder import InspectedModel, inspect_model
from cloister_trainer.model.tensors import DTYPE_BITS
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import open_storage

Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""(dtype, shape) by name."""

HIDDEN, INTERMEDIATE, VOCABULARY, LAYERS = 32, 48, 96, 2

APACHE = "Apache License\nVersion 2.0, January 2004\nhttp://www.apache.org/licenses/\n"
LLAMA_31 = "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\nLlama 3.1 Version Release Date: July 23, 2024\n"
MIT = (
    "MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining a copy of this software...\n"
    'THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND\n'
)


def config(model_type: str = "llama", architecture: str = "LlamaForCausalLM", **fields: Any) -> dict[str, Any]:
    """A config.json of two small layers."""
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    } | fields


def llama_tensors(layers: int = LAYERS, dtype: str = "BF16") -> Tensors:
    """The tensors of a Llama of that many layers."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in LLAMA_LAYER.items()}
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    return {name: (dtype, shape) for name, shape in shapes.items()}


LLAMA_LAYER = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    "input_layernorm": (HIDDEN,),
    "post_attention_layernorm": (HIDDEN,),
}


def phi3_tensors() -> Tensors:
    """Two layers of Phi-3, with its fused projections."""
    tensors = {name: value for name, value in llama_tensors().items() if "layers" not in name}
    layer = {
        "self_attn.qkv_proj": (2 * HIDDEN, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_up_proj": (2 * INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
    }
    return tensors | {f"model.layers.{n}.{name}.weight": ("BF16", s) for n in range(2) for name, s in layer.items()}


def phi_tensors() -> Tensors:
    """Two layers of Phi-2: its attention ends in `dense`, its MLP has no gate, and one norm feeds both."""
    tensors = {name: value for name, value in llama_tensors().items() if "layers" not in name}
    layer = {name: shape for name, shape in LLAMA_LAYER.items() if name.endswith(("q_proj", "k_proj", "v_proj"))} | {
        "self_attn.dense": (HIDDEN, HIDDEN),
        "mlp.fc1": (INTERMEDIATE, HIDDEN),
        "mlp.fc2": (HIDDEN, INTERMEDIATE),
        "input_layernorm": (HIDDEN,),
    }
    return tensors | {f"model.layers.{n}.{name}.weight": ("BF16", s) for n in range(2) for name, s in layer.items()}


def deepseek_tensors(layers: int = LAYERS, experts: int = 4) -> Tensors:
    """DeepSeek-V3: a dense layer, then layers with routed and shared experts; one more than LAYERS is its MTP layer."""
    tensors = {name: value for name, value in llama_tensors().items() if "layers" not in name}
    attention = {
        "self_attn.q_a_proj": (16, HIDDEN),
        "self_attn.q_b_proj": (HIDDEN, 16),
        "self_attn.kv_a_proj_with_mqa": (24, HIDDEN),
        "self_attn.kv_b_proj": (2 * HIDDEN, 16),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
    }
    mlp = {name: shape for name, shape in LLAMA_LAYER.items() if name.startswith("mlp.")}
    small = {name: tuple(24 if size == INTERMEDIATE else size for size in shape) for name, shape in mlp.items()}
    for number in range(layers):
        layer: dict[str, tuple[int, ...]] = dict(attention)
        if number == 0:
            layer |= mlp
        else:
            layer["mlp.gate"] = (experts, HIDDEN)
            for part in ("shared_experts", *(f"experts.{expert}" for expert in range(experts))):
                layer |= {name.replace("mlp.", f"mlp.{part}."): shape for name, shape in small.items()}
        tensors |= {f"model.layers.{number}.{name}.weight": ("BF16", shape) for name, shape in layer.items()}
    return tensors


def mixtral_tensors(experts: int = 4) -> Tensors:
    """Two layers of Mixtral as its checkpoints store them."""
    tensors = {name: value for name, value in llama_tensors().items() if ".mlp." not in name}
    for layer in range(LAYERS):
        block = f"model.layers.{layer}.block_sparse_moe"
        tensors[f"{block}.gate.weight"] = ("BF16", (experts, HIDDEN))
        for expert in range(experts):
            for name, shape in (
                ("w1", (INTERMEDIATE, HIDDEN)),
                ("w2", (HIDDEN, INTERMEDIATE)),
                ("w3", (INTERMEDIATE, HIDDEN)),
            ):
                tensors[f"{block}.experts.{expert}.{name}.weight"] = ("BF16", shape)
    return tensors


def safetensors_bytes(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """A safetensors file of zeros."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        size = prod(shape) * DTYPE_BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + bytes(end)


def write_model(folder: Path, fields: Mapping[str, Any], tensors: Tensors, files: int = 1, **others: str) -> Path:
    """A folder with config.json, a tokenizer, `files` weight files (with an index when there are several), and
    `others` by name, `__` standing for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "tokenizer_config.json").write_text("{}")
    names = list(tensors)
    if files == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    else:
        weight_map: dict[str, str] = {}
        for number in range(files):
            file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
            part = {name: tensors[name] for name in names[number::files]}
            (folder / file).write_bytes(safetensors_bytes(part))
            weight_map |= dict.fromkeys(part, file)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, text in others.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def write_llama(folder: Path, files: int = 1, **others: str) -> Path:
    """A Llama 3.1 folder with its licence."""
    return write_model(folder, config(), llama_tensors(), files, **{"LICENSE": LLAMA_31} | others)


def inspected(
    folder: Path, scratch: Path, stated: str | None = None, reporter: Reporter | None = None
) -> InspectedModel:
    """The folder as prepare reads it."""
    scratch.mkdir(exist_ok=True)
    return inspect_model(open_storage(), folder.as_uri(), scratch, stated, RunSettings(), reporter or Reporter.silent())
