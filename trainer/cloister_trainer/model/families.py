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
    SLIDING = "full, or a sliding window where config.json sets one"
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
    fused_norms: bool = True
    """Whether its norms compute what Llama's or OLMo 2's do: train runs each in one kernel on GPUs (train/norms.py)."""
    window_in_mask: bool = False
    """The sliding window exists only in transformers' mask: `eager` where an example is longer than the window."""
    servers: tuple[Server, ...] = ()
    """Inference servers that load LoRA adapters of this family: vLLM as its list of supported models says, llama.cpp
    where its logits with a converted adapter are stock PEFT's."""
    own_class: str | None = None
    """The module of ours with the architecture's class, where transformers has none."""
    tested: Literal["tiny", "real"] = "tiny"
    """tiny: a random model of the real architecture; real: published weights."""
    unproven: str = ""
    """What nobody has tried yet, beyond what is true of all families that are `tested` so."""


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
        unproven="Of published weights, only those of SmolLM2-135M were trained.",
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
    ),
    "olmo": Family("OLMo", LLAMA_ATTENTION, LLAMA_MLP, APACHE, servers=BOTH, fused_norms=False),
    "olmo2": Family("OLMo 2", LLAMA_ATTENTION, LLAMA_MLP, APACHE, servers=BOTH),
    "olmo3": Family(
        "OLMo 3",
        LLAMA_ATTENTION,
        LLAMA_MLP,
        APACHE,
        attention_kind=AttentionKind.MIXED,
        servers=BOTH,
    ),
    "olmoe": Family(
        "OLMoE",
        LLAMA_ATTENTION,
        (),
        APACHE,
        experts=Experts(),
        routers=("mlp.gate",),
        servers=(Server.LLAMA_CPP,),
    ),
    "flex_olmo": Family("FlexOlmo", LLAMA_ATTENTION, (), APACHE, experts=Experts(), routers=("mlp.gate",)),
    "phi": Family(
        "Phi-1, Phi-1.5 and Phi-2",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense"),
        ("mlp.fc1", "mlp.fc2"),
        MIT,
        servers=BOTH,
        fused_norms=False,
    ),
    "phi3": Family(
        "Phi-3, Phi-3.5, Phi-4 and Phi-4-mini",
        ("self_attn.qkv_proj", "self_attn.o_proj"),
        FUSED_MLP,
        MIT,
        attention_kind=AttentionKind.SLIDING,
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
        servers=(Server.VLLM,),
        unproven="Examples of more than 4,096 tokens: transformers' class takes LongRoPE's frequencies of short ones "
        "for them, and a server may not.",
        fused_norms=False,
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
    ),
    "qwen3_moe": Family(
        "Qwen3-30B-A3B, Qwen3-235B-A22B",
        LLAMA_ATTENTION,
        LLAMA_MLP,
        QWEN_LICENSES,
        experts=Experts(),
        routers=("mlp.gate",),
        servers=BOTH,
    ),
    "gemma": Family("Gemma", LLAMA_ATTENTION, LLAMA_MLP, GEMMA, servers=BOTH, fused_norms=False),
    "gemma2": Family(
        "Gemma 2",
        LLAMA_ATTENTION,
        LLAMA_MLP,
        GEMMA,
        attention_kind=AttentionKind.MIXED,
        eager=True,
        servers=BOTH,
        fused_norms=False,
    ),
    "gemma3_text": Family(
        "Gemma 3 (text only: 270M, 1B)",
        LLAMA_ATTENTION,
        LLAMA_MLP,
        GEMMA,
        attention_kind=AttentionKind.MIXED,
        servers=BOTH,
        fused_norms=False,
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
        servers=BOTH,
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
        unproven="Of Kimi K2 and Moonlight: a tokenizer.json made from their own tokenizer's file.",
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
        eager=True,
        unproven="Whether one example at a time, with attention scores kept as matrices, is fast enough to be of use.",
    ),
    "minimax_m2": Family(
        "MiniMax-M2",
        LLAMA_ATTENTION,
        (),
        ("mit", "modified-mit"),
        experts=MIXTRAL_EXPERTS,
        routers=("mlp.gate",),
        renames=SPARSE_BLOCK,
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
        eager=True,
    ),
    "grok-1": Family(
        "Grok-1, converted to safetensors",
        ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj"),
        (),
        APACHE,
        experts=Experts(
            "moe_block.experts.gate_up_proj", "moe_block.experts.down_proj", ("linear", "linear_v", "linear_1")
        ),
        routers=("moe_block.gate",),
        renames=(("norm.scale", "norm.weight"),),
        eager=True,
        servers=(Server.VLLM,),
        own_class="cloister_trainer.model.grok",
        unproven="Serving: vLLM's own class caps the router's logits, which the published code does not, and takes the "
        "exact GELU, so its answers differ a little from training's. A tokenizer.json of Grok-1's SentencePiece file.",
        fused_norms=False,
    ),
}
"""Every model_type that can be trained; each is checked with a tiny random model of the real architecture."""

SAME_AS: dict[str, str] = {"kimi_k2": "deepseek_v3", "grok": "grok-1", "grok1": "grok-1", "grok_1": "grok-1"}
"""Model types whose architecture is known under another name only; their checkpoints name the other's class."""
SAME_BY_ARCHITECTURE: dict[str, str] = {"Grok1ModelForCausalLM": "grok-1"}
"""By the class that config.json names, where it has no model_type."""
