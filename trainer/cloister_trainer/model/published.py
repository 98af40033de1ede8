"""Published models of each family as their config.json has them, as data: for the hardware that docs/models.md names.

Only what bears on shapes and memory; what is not said is transformers' default for the model_type. A test holds the
shapes against the number of parameters that the publishers count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    """One published model."""

    name: str
    billions: float
    """Its parameters, as published."""
    config: dict[str, Any]
    """Fields of config.json."""
    quantised: str | None = None
    """quant_method of the published weights, where they are not bf16; the plan is that of the bf16 copy."""


def _shape(
    hidden: int, intermediate: int, layers: int, heads: int, key_value_heads: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "vocab_size": vocabulary,
        **more,
    }


def _experts(experts: int, visited: int, intermediate: int, field: str = "num_experts", **more: Any) -> dict[str, Any]:
    return {field: experts, "num_experts_per_tok": visited, "moe_intermediate_size": intermediate, **more}


def _latent(query_rank: int | None, shared: int) -> dict[str, Any]:
    """DeepSeek's attention, with one dense layer before the mixtures."""
    return {
        "q_lora_rank": query_rank,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_shared_experts": shared,
        "first_k_dense_replace": 1,
    }


def _longrope(pairs: int, positions: int, **more: Any) -> dict[str, Any]:
    """Rotary positions of models with 128k tokens; their factors have no bearing on memory."""
    factors = {"short_factor": [1.0] * pairs, "long_factor": [1.0] * pairs}
    original = {"original_max_position_embeddings": 4096}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": positions / 4096, **factors, **original, **more}
    return {"max_position_embeddings": positions, "rope_parameters": rope, **original}


TIED = {"tie_word_embeddings": True}
UNTIED = {"tie_word_embeddings": False}
HEAD_64, HEAD_128, HEAD_256 = ({"head_dim": size} for size in (64, 128, 256))
PHI_MOE_MORE = {
    "attention_bias": True,
    "lm_head_bias": True,
    **_longrope(64, 131072, short_mscale=1.24, long_mscale=1.24),
}
SEVEN_LIGHTNING_THEN_FULL = ["linear_attention"] * 7 + ["full_attention"]

PUBLISHED: dict[str, tuple[Published, ...]] = {
    "llama": (
        Published("SmolLM2-135M", 0.135, _shape(576, 1536, 30, 9, 3, 49152, **TIED)),
        Published("Llama 3.2 1B", 1.24, _shape(2048, 8192, 16, 32, 8, 128256, **TIED, **HEAD_64)),
        Published("Llama 3.2 3B", 3.21, _shape(3072, 8192, 28, 24, 8, 128256, **TIED, **HEAD_128)),
        Published("Llama 2 7B", 6.74, _shape(4096, 11008, 32, 32, 32, 32000)),
        Published("Llama 3.1 8B", 8.03, _shape(4096, 14336, 32, 32, 8, 128256)),
        Published("Llama 3.1 70B and 3.3 70B", 70.6, _shape(8192, 28672, 80, 64, 8, 128256)),
        Published("Llama 3.1 405B", 405.0, _shape(16384, 53248, 126, 128, 8, 128256)),
    ),
    "mistral": (
        Published("Mistral 7B v0.3", 7.25, _shape(4096, 14336, 32, 32, 8, 32768, sliding_window=None)),
        Published("Mistral Nemo 12B", 12.2, _shape(5120, 14336, 40, 32, 8, 131072, sliding_window=None, **HEAD_128)),
        Published(
            "Mistral Small 24B (2501)", 23.6, _shape(5120, 32768, 40, 32, 8, 131072, sliding_window=None, **HEAD_128)
        ),
        Published("Mistral Large 123B (2411)", 123.0, _shape(12288, 28672, 88, 96, 8, 32768, sliding_window=None)),
    ),
    "ministral": (
        Published(
            "Ministral 8B (2410)", 8.02, _shape(4096, 12288, 36, 32, 8, 131072, sliding_window=32768, **HEAD_128)
        ),
    ),
    "mixtral": (
        Published("Mixtral 8x7B", 46.7, _shape(4096, 14336, 32, 32, 8, 32000, num_local_experts=8)),
        Published("Mixtral 8x22B", 141.0, _shape(6144, 16384, 56, 48, 8, 32768, num_local_experts=8)),
    ),
    "olmo": (Published("OLMo 7B (0724)", 6.89, _shape(4096, 11008, 32, 32, 32, 50304)),),
    "olmo2": (
        Published("OLMo 2 1B", 1.48, _shape(2048, 8192, 16, 16, 16, 100352)),
        Published("OLMo 2 7B", 7.30, _shape(4096, 11008, 32, 32, 32, 100352)),
        Published("OLMo 2 13B", 13.7, _shape(5120, 13824, 40, 40, 40, 100352)),
        Published("OLMo 2 32B", 32.2, _shape(5120, 27648, 64, 40, 8, 100352)),
    ),
    "olmo3": (
        Published("OLMo 3 7B", 7.30, _shape(4096, 11008, 32, 32, 32, 100278)),
        Published("OLMo 3 32B", 32.2, _shape(5120, 27648, 64, 40, 8, 100278)),
    ),
    "olmoe": (Published("OLMoE 1B-7B", 6.92, _shape(2048, 1024, 16, 16, 16, 50304, num_experts=64)),),
    "flex_olmo": (Published("FlexOlmo 7x7B", 33.3, _shape(4096, 11008, 32, 32, 32, 100352, num_experts=7)),),
    "phi": (Published("Phi-2", 2.78, _shape(2560, 10240, 32, 32, 32, 51200)),),
    "phi3": (
        Published("Phi-3-mini (4k)", 3.82, _shape(3072, 8192, 32, 32, 32, 32064)),
        Published("Phi-3.5-mini", 3.82, _shape(3072, 8192, 32, 32, 32, 32064, **_longrope(48, 131072))),
        Published(
            "Phi-4-mini",
            3.84,
            _shape(3072, 8192, 32, 24, 8, 200064, **TIED, **_longrope(48, 131072, partial_rotary_factor=0.75)),
        ),
        Published("Phi-3-medium (4k)", 14.0, _shape(5120, 17920, 40, 40, 10, 32064)),
        Published("Phi-4", 14.7, _shape(5120, 17920, 40, 40, 10, 100352)),
    ),
    "phimoe": (
        Published(
            "Phi-3.5-MoE",
            41.9,
            _shape(4096, 6400, 32, 32, 8, 32064, num_local_experts=16, sliding_window=131072, **PHI_MOE_MORE),
        ),
    ),
    "qwen2": (
        Published("Qwen2.5 0.5B", 0.494, _shape(896, 4864, 24, 14, 2, 151936, **TIED)),
        Published("Qwen2.5 7B", 7.62, _shape(3584, 18944, 28, 28, 4, 152064)),
        Published("Qwen2.5 32B and QwQ 32B", 32.8, _shape(5120, 27648, 64, 40, 8, 152064)),
        Published("Qwen2.5 72B", 72.7, _shape(8192, 29568, 80, 64, 8, 152064)),
    ),
    "qwen3": (
        Published("Qwen3 0.6B", 0.6, _shape(1024, 3072, 28, 16, 8, 151936, **TIED, **HEAD_128)),
        Published("Qwen3 8B", 8.19, _shape(4096, 12288, 36, 32, 8, 151936, **HEAD_128)),
        Published("Qwen3 14B", 14.8, _shape(5120, 17408, 40, 40, 8, 151936, **HEAD_128)),
        Published("Qwen3 32B", 32.8, _shape(5120, 25600, 64, 64, 8, 151936, **HEAD_128)),
    ),
    "qwen2_moe": (
        Published(
            "Qwen1.5-MoE-A2.7B",
            14.3,
            _shape(2048, 5632, 24, 16, 16, 151936, **_experts(60, 4, 1408, shared_expert_intermediate_size=5632)),
        ),
        Published(
            "Qwen2-57B-A14B",
            57.4,
            _shape(3584, 18944, 28, 28, 4, 151936, **_experts(64, 8, 2560, shared_expert_intermediate_size=20480)),
        ),
    ),
    "qwen3_moe": (
        Published("Qwen3-30B-A3B", 30.5, _shape(2048, 6144, 48, 32, 4, 151936, **HEAD_128, **_experts(128, 8, 768))),
        Published(
            "Qwen3-235B-A22B", 235.0, _shape(4096, 12288, 94, 64, 4, 151936, **HEAD_128, **_experts(128, 8, 1536))
        ),
    ),
    "gemma": (
        Published("Gemma 2B", 2.51, _shape(2048, 16384, 18, 8, 1, 256000, **HEAD_256)),
        Published("Gemma 7B", 8.54, _shape(3072, 24576, 28, 16, 16, 256000, **HEAD_256)),
    ),
    "gemma2": (
        Published("Gemma 2 2B", 2.61, _shape(2304, 9216, 26, 8, 4, 256000, **HEAD_256)),
        Published("Gemma 2 9B", 9.24, _shape(3584, 14336, 42, 16, 8, 256000, **HEAD_256)),
        Published("Gemma 2 27B", 27.2, _shape(4608, 36864, 46, 32, 16, 256000, **HEAD_128)),
    ),
    "gemma3_text": (
        Published("Gemma 3 270M", 0.268, _shape(640, 2048, 18, 4, 1, 262144, **HEAD_256)),
        Published("Gemma 3 1B", 1.0, _shape(1152, 6912, 26, 4, 1, 262144, **HEAD_256)),
    ),
    "smollm3": (Published("SmolLM3 3B", 3.08, _shape(2048, 11008, 36, 16, 4, 128256, **TIED)),),
    "granite": (
        Published("Granite 3.3 2B", 2.53, _shape(2048, 8192, 40, 32, 8, 49159, **TIED)),
        Published("Granite 3.3 8B", 8.17, _shape(4096, 12800, 40, 32, 8, 49159, **TIED)),
    ),
    "glm4_moe": (
        Published(
            "GLM-4.5-Air",
            106.0,
            _shape(
                4096,
                10944,
                46,
                96,
                8,
                151552,
                **HEAD_128,
                **_experts(128, 8, 1408, "n_routed_experts", first_k_dense_replace=1),
            ),
        ),
        Published(
            "GLM-4.5 and GLM-4.6",
            355.0,
            _shape(
                5120,
                12288,
                92,
                96,
                8,
                151552,
                **HEAD_128,
                **_experts(160, 8, 1536, "n_routed_experts", first_k_dense_replace=3, use_qk_norm=True),
            ),
        ),
    ),
    "deepseek_v2": (
        Published(
            "DeepSeek-V2-Lite",
            15.7,
            _shape(2048, 10944, 27, 16, 16, 102400, **_latent(None, 2), **_experts(64, 6, 1408, "n_routed_experts")),
        ),
        Published(
            "DeepSeek-V2",
            236.0,
            _shape(5120, 12288, 60, 128, 128, 102400, **_latent(1536, 2), **_experts(160, 6, 1536, "n_routed_experts")),
        ),
    ),
    "deepseek_v3": (
        Published(
            "Moonlight 16B-A3B",
            16.0,
            _shape(2048, 11264, 27, 16, 16, 163840, **_latent(None, 2), **_experts(64, 6, 1408, "n_routed_experts")),
        ),
        Published(
            "DeepSeek-V3 and R1",
            671.0,
            _shape(
                7168,
                18432,
                61,
                128,
                128,
                129280,
                **_latent(1536, 1) | {"first_k_dense_replace": 3},
                **_experts(256, 8, 2048, "n_routed_experts"),
            ),
            quantised="fp8",
        ),
        Published(
            "Kimi K2",
            1026.0,
            _shape(7168, 18432, 61, 64, 64, 163840, **_latent(1536, 1), **_experts(384, 8, 2048, "n_routed_experts")),
            quantised="fp8",
        ),
    ),
    "minimax": (
        Published(
            "MiniMax-Text-01 and M1",
            456.0,
            _shape(
                6144,
                9216,
                80,
                64,
                8,
                200064,
                **HEAD_128,
                num_local_experts=32,
                num_experts_per_tok=2,
                layer_types=10 * SEVEN_LIGHTNING_THEN_FULL,
            ),
        ),
    ),
    "minimax_m2": (
        Published(
            "MiniMax-M2",
            229.0,
            _shape(3072, 1536, 62, 48, 8, 200064, **HEAD_128, num_local_experts=256, num_experts_per_tok=8),
            quantised="fp8",
        ),
    ),
    "gpt_oss": (
        Published(
            "gpt-oss-20b",
            20.9,
            _shape(2880, 2880, 24, 64, 8, 201088, **HEAD_64, num_local_experts=32, num_experts_per_tok=4),
            quantised="mxfp4",
        ),
        Published(
            "gpt-oss-120b",
            116.8,
            _shape(2880, 2880, 36, 64, 8, 201088, **HEAD_64, num_local_experts=128, num_experts_per_tok=4),
            quantised="mxfp4",
        ),
    ),
    "grok-1": (
        Published(
            "Grok-1", 314.0, _shape(6144, 32768, 64, 48, 8, 131072, **TIED, num_experts=8, num_experts_per_tok=2)
        ),
    ),
}
"""By model_type, the smallest first."""
