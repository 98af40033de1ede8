"""Tiny random models of the real architectures, and examples without files, for tests of training's mathematics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft.tuners import lora as peft_lora
from peft.tuners.lora.layer import ParamWrapper

from cloister_api.spec_training import Lora, LoraTargets, Precision, TargetPreset
from cloister_trainer.model.config import make_known
from cloister_trainer.model.targets import Targets
from cloister_trainer.train.lora import add_lora, trainable_parameters
from cloister_trainer.train.lora_layers import LeanLinear, LeanWeight, lean_4bit, lora_layers
from cloister_trainer.train.model import CPU, TrainingModule, load_base
from cloister_trainer.train.targets import targets_in

VOCABULARY = 128
LONGEST = 96
STOCK: dict[type, type] = {LeanLinear: peft_lora.Linear, LeanWeight: ParamWrapper, lean_4bit(): peft_lora.Linear4bit}

COMMON = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 20},
    "mixtral": {**LOCAL_EXPERTS, "sliding_window": None},
    "olmo": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 20, "layer_types": ["sliding_attention", "full_attention"]},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "phi": {},
    "phi3": {"sliding_window": 20},
    "phimoe": {**LOCAL_EXPERTS, "sliding_window": 256},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 24},
    "qwen3_moe": {**EXPERTS, "head_dim": 8, "decoder_sparse_step": 1},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 20, "final_logit_softcapping": 5.0},
    "gemma3_text": {"head_dim": 8, "sliding_window": 20},
    "smollm3": {},
    "granite": {"logits_scaling": 3.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
    "glm4_moe": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
        "head_dim": 8,
        "n_group": 1,
        "topk_group": 1,
        "use_qk_norm": True,
    },
    "deepseek_v3": LATENT,
    "deepseek_v2": {**LATENT, "topk_method": "greedy"},
    "minimax_m2": {**LOCAL_EXPERTS, "head_dim": 8, "rotary_dim": 4},
    "ministral": {"sliding_window": 20, "head_dim": 8},
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2},
    "minimax": {**LOCAL_EXPERTS, "head_dim": 8, "block_size": 16, "sliding_window": None},
    "gpt_oss": {**LOCAL_EXPERTS, "head_dim": 8, "sliding_window": 20},
    "grok-1": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "attn_output_multiplier": 2.0,
        "max_attn_value": 3.0,
        "embedding_multiplier_scale": 2.5,
        "output_multiplier_scale": 0.6,
    },
}

YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 3.1": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "Phi-4-mini": (
        "phi3",
        {
            "tie_word_embeddings": True,
            "sliding_window": 256,
            "head_dim": 8,
            "original_max_position_embeddings": 128,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0] * 3,
                "long_factor": [1.0, 2.0, 4.0],
                "original_max_position_embeddings": 128,
            },
        },
    ),
    "Phi-3.5-MoE": (
        "phimoe",
        {
            "attention_bias": True,
            "lm_head_bias": True,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0, 1.0, 1.5, 2.0],
                "long_factor": [1.0, 2.0, 4.0, 8.0],
                "short_mscale": 1.2,
                "long_mscale": 1.4,
                "original_max_position_embeddings": 128,
            },
        },
    ),
    "phimoe with a short window": ("phimoe", {"sliding_window": 20}),
    "Moonlight": ("deepseek_v3", {"q_lora_rank": None}),
    "DeepSeek-V3": ("deepseek_v3", {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}}),
    "DeepSeek-V2": ("deepseek_v2", {"rope_parameters": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}}),
}
"""Models whose config.json differs from its family's usual one in what matters here."""


class ListExamples:
    """Examples in memory, as `Examples` has them on disk."""

    def __init__(self, lengths: list[int], prompt_share: float = 0.3, seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        self._tokens = [draw.integers(3, VOCABULARY, n).astype(np.uint32) for n in lengths]
        self._prompts = [max(1, int(n * prompt_share)) for n in lengths]
        self.lengths = np.array(lengths, dtype=np.int64)
        self.trained = self.lengths - np.array(self._prompts)
        self.epoch_ids = np.arange(len(lengths), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._tokens)

    def tokens(self, index: int) -> NDArray[np.uint32]:
        return self._tokens[index]

    def label_mask(self, index: int) -> NDArray[np.bool_]:
        return np.arange(len(self._tokens[index])) >= self._prompts[index]


def save_tiny_model(folder: Path, model_type: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
    """A random model of the real architecture, written as transformers writes it. No bias is 0, as trained ones are."""
    from transformers import AutoConfig, AutoModelForCausalLM

    variant, changed = VARIANTS.get(model_type, (model_type, {}))
    make_known(variant)
    config = AutoConfig.for_model(variant, **{**COMMON, **SETTINGS[variant], **changed, **settings})
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("bias"):
                tensor.normal_(0, 0.05)
    model.save_pretrained(folder)
    return folder


def with_adapter(
    folder: Path,
    lora: Lora | None = None,
    precision: Precision = Precision.FP32,
    *,
    random_b: bool = False,
    device: torch.device = CPU,
) -> TrainingModule:
    """The module that trains an adapter on the model in `folder`; `random_b`: one that is not without effect."""
    lora = lora or Lora(rank=4, alpha=8)
    model = load_base(folder, precision, LONGEST, lora.quantization, device)
    module = TrainingModule(add_lora(model, targets_of(folder, lora), lora, seed=1).to(device), precision)
    if random_b:
        randomise_b(module)
    return module.train()


def targets_of(folder: Path, lora: Lora) -> Targets:
    return targets_in(folder, sorted(path.name for path in folder.glob("*.safetensors")), lora)


def all_with_experts(rank: int = 4) -> Lora:
    return Lora(rank=rank, alpha=8, targets=LoraTargets(preset=TargetPreset.ALL_WITH_EXPERTS))


@contextmanager
def stock_layers(peft_model: torch.nn.Module) -> Iterator[None]:
    """Inside, adapted modules run PEFT's own forward pass: the same numbers as stock PEFT has, to the last bit."""
    lean = [layer for layer in lora_layers(peft_model).values() if type(layer) in STOCK]
    classes = [type(layer) for layer in lean]
    for layer in lean:
        layer.__class__ = STOCK[type(layer)]
    try:
        yield
    finally:
        for layer, own in zip(lean, classes, strict=True):
            layer.__class__ = own


@contextmanager
def attending_by(model: Any, name: str) -> Iterator[None]:
    """Inside, the model attends by transformers' `name`, for example eager."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    own = {key: config._attn_implementation for key, config in configs.items()}
    for config in configs.values():
        config._attn_implementation = name
    try:
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = own[key]


def randomise_b(module: TrainingModule, size: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in trainable_parameters(module.model).items():
            if ".lora_B." in name:
                parameter.copy_(torch.empty(parameter.shape).normal_(0, size, generator=generator))


def adapter_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A float32 copy of the adapter, by PEFT's saved names."""
    return {name: parameter.detach().float().clone() for name, parameter in trainable_parameters(model).items()}


def gradients(module: TrainingModule) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in trainable_parameters(module.model).items():
        assert parameter.grad is not None, f"{name} has no gradient"
        found[name] = parameter.grad.clone()
        parameter.grad = None
    return found
