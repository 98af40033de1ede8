"""What Cloister knows of each model family, as data keyed by the `model_type` of config.json.

Names are those of transformers 5.23's modules below one decoder layer (`model.layers.<i>.`). Routed experts are one 3-D
parameter for all experts of a layer there, whatever the checkpoint calls them; `Experts` says how the two meet.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from cloister_api.spec_cluster import Server

LAYER_PREFIX = "model.layers."


class AttentionKind(StrEnum):
    """How a family's layers attend."""

    FULL = "full"
    SLIDING = "sliding window"
    MIXED = "full and sliding window layers"
    LATENT = "multi-head latent attention"
    LIGHTNING = "full and lightning (linear) layers"
    SINKS = "full and sliding window layers with attention sinks"


@dataclass(frozen=True)
class Experts:
    """Routed experts of a layer: two 3-D parameters of the live model, and what the checkpoint stores instead."""

    gate_up: str = "mlp.experts.gate_up_proj"
    """Live parameter, [experts, 2 x intermediate, hidden] (`transposed`: [experts, hidden, 2 x intermediate])."""
    down: str = "mlp.experts.down_proj"
    """Live parameter, [experts, hidden, intermediate] (`transposed`: [experts, intermediate, hidden])."""
    stored: tuple[str, str, str] | None = ("gate_proj", "up_proj", "down_proj")
    """The checkpoint's names of one expert's matrices, `experts.<n>.<name>.weight`; None where it stores them fused."""
    transposed: bool = False


@dataclass(frozen=True)
class Family:
    """One model_type."""

    title: str
    attention: tuple[str, ...]
    """Linear modules of attention. Names that a layer lacks are passed over: families mix kinds of layers."""
    mlp: tuple[str, ...]
    """Linear modules of dense and shared MLPs."""
    licenses: tuple[str, ...]
    """Licences usual for the family. Exactly one: it counts as evidence when the folder itself says nothing."""
    experts: Experts | None = None
    routers: tuple[str, ...] = ()
    """Modules that route tokens to experts; always frozen."""
    frozen: tuple[str, ...] = ()
    """Further linear modules that presets leave frozen."""
    renames: tuple[tuple[str, str], ...] = ()
    """(in the checkpoint, in the live model) parts of names, replaced in this order."""
    attention_kind: AttentionKind = AttentionKind.FULL
    eager: bool = False
    """Trained with transformers' own attention, whose memory is quadratic in the tokens of a micro-batch."""
    packing: bool = True
    """Whether several examples in one row stay exactly separate."""
    window_in_mask: bool = False
    """The sliding window exists only in transformers' mask: `eager` where an example is longer than the window."""
    servers: tuple[Server, ...] = ()
    """Inference servers that load LoRA adapters of this family: vLLM as its list of supported models says, llama.cpp
    where convert_lora_to_gguf.py knows the architecture and none of its tensors is cut up in a way that it cannot."""
    tested: Literal["tiny", "real"] = "tiny"
    """tiny: a random model of the real architecture; real: published weights."""
    minimum_hardware: str = "one 24 GiB GPU up to 8 billion parameters"


LLAMA_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
LLAMA_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
FUSED_MLP = ("mlp.gate_up_proj", "mlp.down_proj")
LATENT_ATTENTION = (
    "self_attn.q_proj",
    "self_attn.q_a_proj",
    "self_attn.q_b_proj",
    "self_attn.kv_a_proj_with_mqa",
    "self_attn.kv_b_proj",
    "self_attn.o_proj",
)
SHARED_EXPERTS = ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj", "mlp.shared_experts.down_proj")
SHARED_EXPERT = ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj")
MIXTRAL_EXPERTS = Experts(stored=("w1", "w3", "w2"))
SPARSE_BLOCK = ((".block_sparse_moe.", ".mlp."),)

BOTH = (Server.VLLM, Server.LLAMA_CPP)
GEMMA = ("gemma",)
APACHE = ("apache-2.0",)
MIT = ("mit",)
LLAMA_LICENSES = ("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3")
QWEN_LICENSES = ("apache-2.0", "qwen", "qwen-research", "tongyi-qianwen")

FAMILIES: dict[str, Family] = {
    "llama": Family(
        "Llama, SmolLM2 and models of the same architecture",
        LLAMA_ATTENTION,
        LLAMA_MLP,
        LLAMA_LICENSES,
        servers=BOTH,
        tested="real",
    ),
    "mistral": Family(
        "Mistral",
        LLAMA_ATTENTION,
        LLAMA_MLP,
        ("apache-2.0", "mrl", "mnpl"),
        attention_kind=AttentionKind.SLIDING,
        servers=BOTH,
    ),
    "ministral": Family(
        "Ministral",
        LLAMA_ATTENTION,
        LLAMA_MLP,
        ("mrl",),
        attention_kind=AttentionKind.MIXED,
    ),
    "mixtral": Family(
        "Mixtral",
        LLAMA_ATTENTION,
        (),
        APACHE,
        experts=MIXTRAL_EXPERTS,
        routers=("mlp.gate",),
        renames=SPARSE_BLOCK,
        servers=BOTH,
        minimum_hardware="8x7B: two 80 GiB GPUs at stage 3",
    ),
    "olmo": Family("OLMo", LLAMA_ATTENTION, LLAMA_MLP, APACHE, servers=BOTH),
    "olmo2": Family("OLMo 2", LLAMA_ATTENTION, LLAMA_MLP, APACHE, servers=BOTH),
    "olmo3": Family("OLMo 3", LLAMA_ATTENTION, LLAMA_MLP, APACHE, attention_kind=AttentionKind.MIXED, servers=BOTH),
    "olmoe": Family(
        "OLMoE",
        LLAMA_ATTENTION,
        (),
        APACHE,
        experts=Experts(),
        routers=("mlp.gate",),
        servers=(Server.LLAMA_CPP,),
    ),
    "flex_olmo": Family(
        "FlexOLMo", LLAMA_ATTENTION, (), APACHE, experts=Experts(), routers=("mlp.gate",), minimum_hardware="80 GiB"
    ),
    "phi": Family(
        "Phi-1, Phi-1.5 and Phi-2",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense"),
        ("mlp.fc1", "mlp.fc2"),
        MIT,
        servers=(Server.VLLM,),
    ),
    "phi3": Family(
        "Phi-3, Phi-3.5, Phi-4 and Phi-4-mini",
        ("self_attn.qkv_proj", "self_attn.o_proj"),
        FUSED_MLP,
        MIT,
        servers=BOTH,
    ),
    "phimoe": Family(
        "Phi-3.5-MoE",
        LLAMA_ATTENTION,
        (),
        MIT,
        experts=MIXTRAL_EXPERTS,
        routers=("mlp.router",),
        renames=(*SPARSE_BLOCK, (".mlp.gate.", ".mlp.router.")),
        window_in_mask=True,
        minimum_hardware="two 80 GiB GPUs at stage 3",
        servers=(Server.VLLM,),
    ),
    "qwen2": Family("Qwen2, Qwen2.5, QwQ", LLAMA_ATTENTION, LLAMA_MLP, QWEN_LICENSES, servers=BOTH),
    "qwen3": Family("Qwen3", LLAMA_ATTENTION, LLAMA_MLP, QWEN_LICENSES, servers=BOTH),
    "qwen2_moe": Family(
        "Qwen1.5-MoE and Qwen2-57B-A14B",
        LLAMA_ATTENTION,
        (*LLAMA_MLP, *SHARED_EXPERT),
        QWEN_LICENSES,
        experts=Experts(),
        routers=("mlp.gate", "mlp.shared_expert_gate"),
        servers=BOTH,
        minimum_hardware="57B-A14B: two 80 GiB GPUs at stage 3",
    ),
    "qwen3_moe": Family(
        "Qwen3-30B-A3B, Qwen3-235B-A22B",
        LLAMA_ATTENTION,
        LLAMA_MLP,
        QWEN_LICENSES,
        experts=Experts(),
        routers=("mlp.gate",),
        servers=BOTH,
        minimum_hardware="30B-A3B: one 80 GiB GPU; 235B-A22B: eight 80 GiB GPUs at stage 3",
    ),
    "gemma": Family("Gemma", LLAMA_ATTENTION, LLAMA_MLP, GEMMA, servers=BOTH),
    "gemma2": Family(
        "Gemma 2", LLAMA_ATTENTION, LLAMA_MLP, GEMMA, attention_kind=AttentionKind.MIXED, eager=True, servers=BOTH
    ),
    "gemma3_text": Family(
        "Gemma 3 (text only: 270M, 1B)",
        LLAMA_ATTENTION,
        LLAMA_MLP,
        GEMMA,
        attention_kind=AttentionKind.MIXED,
        servers=BOTH,
    ),
    "smollm3": Family("SmolLM3", LLAMA_ATTENTION, LLAMA_MLP, APACHE, servers=BOTH),
    "granite": Family("Granite 3", LLAMA_ATTENTION, LLAMA_MLP, APACHE, servers=BOTH),
    "glm4_moe": Family(
        "GLM-4.5, GLM-4.5-Air and GLM-4.6",
        LLAMA_ATTENTION,
        (*LLAMA_MLP, *SHARED_EXPERTS),
        MIT,
        experts=Experts(),
        routers=("mlp.gate",),
        servers=(Server.VLLM,),
        minimum_hardware="Air (106B): four 80 GiB GPUs at stage 3; 355B: twelve 80 GiB GPUs at stage 3",
    ),
    "deepseek_v2": Family(
        "DeepSeek-V2, DeepSeek-Coder-V2",
        LATENT_ATTENTION,
        (*LLAMA_MLP, *SHARED_EXPERTS),
        ("deepseek",),
        experts=Experts(),
        routers=("mlp.gate",),
        attention_kind=AttentionKind.LATENT,
        servers=(Server.VLLM,),
        minimum_hardware="Lite (16B): one 80 GiB GPU; 236B: eight 80 GiB GPUs at stage 3",
    ),
    "deepseek_v3": Family(
        "DeepSeek-V3, DeepSeek-R1, Kimi K2 and Moonlight",
        LATENT_ATTENTION,
        (*LLAMA_MLP, *SHARED_EXPERTS),
        ("deepseek", "mit", "modified-mit"),
        experts=Experts(),
        routers=("mlp.gate",),
        attention_kind=AttentionKind.LATENT,
        servers=(Server.VLLM,),
        minimum_hardware="24 80 GiB GPUs on three nodes at stage 3, from a bf16 conversion",
    ),
    "minimax": Family(
        "MiniMax-Text-01, MiniMax-M1",
        (*LLAMA_ATTENTION, "self_attn.qkv_proj", "self_attn.out_proj", "self_attn.output_gate"),
        (),
        ("minimax", "apache-2.0"),
        experts=MIXTRAL_EXPERTS,
        routers=("mlp.gate",),
        renames=SPARSE_BLOCK,
        attention_kind=AttentionKind.LIGHTNING,
        packing=False,
        minimum_hardware="16 80 GiB GPUs on two nodes at stage 3",
        eager=True,
    ),
    "minimax_m2": Family(
        "MiniMax-M2",
        LLAMA_ATTENTION,
        (),
        ("mit", "modified-mit"),
        experts=MIXTRAL_EXPERTS,
        routers=("mlp.gate",),
        renames=SPARSE_BLOCK,
        minimum_hardware="eight 80 GiB GPUs at stage 3, from a bf16 conversion",
        servers=(Server.VLLM,),
    ),
    "gpt_oss": Family(
        "gpt-oss",
        LLAMA_ATTENTION,
        (),
        APACHE,
        experts=Experts(stored=None, transposed=True),
        routers=("mlp.router",),
        attention_kind=AttentionKind.SINKS,
        packing=False,
        servers=(Server.VLLM,),
        minimum_hardware="20b: one 80 GiB GPU, from a bf16 conversion",
        eager=True,
    ),
}
"""Every model_type that can be trained; each is checked with a tiny random model of the real architecture."""

SAME_AS: dict[str, str] = {"kimi_k2": "deepseek_v3"}
"""Model types whose architecture transformers has under another name only; their checkpoints name the other's class."""

UNSUPPORTED: dict[str, str] = {
    "grok-1": "Grok-1 has no native class in transformers; its published weights are a JAX checkpoint that runs only "
    "with code from the repository, which Cloister never executes.",
    "gemma3": "This is Gemma 3 with its vision tower; Cloister trains text models. Use a text-only checkpoint "
    '("model_type": "gemma3_text").',
    "kimi_k25": "This is Kimi K2.5 with its vision tower; Cloister trains text models. Use Kimi K2.",
    "mistral3": "This is Mistral with its vision tower; Cloister trains text models.",
    "llama4": "Llama 4 comes with a vision tower; Cloister trains text models.",
}
"""Well-known model types that cannot be trained, with the sentence that says why."""

UNSUPPORTED_ALIASES: dict[str, str] = {"grok": "grok-1", "grok1": "grok-1", "grok_1": "grok-1"}
