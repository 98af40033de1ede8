"""Well-known models that cannot be trained, as data: why, and what to use in their place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unsupported:
    """Models of one or more model_types."""

    title: str
    types: tuple[str, ...]
    """model_type in config.json, in lower case, in every way that people write it."""
    why: str
    instead: str

    @property
    def sentence(self) -> str:
        """For a refusal."""
        return f"{self.why} {self.instead}"


def _with_vision(title: str, types: tuple[str, ...], instead: str) -> Unsupported:
    why = f"This is {title} with its vision tower; Cloister trains text models."
    return Unsupported(f"{title} (with vision)", types, why, instead)


UNSUPPORTED_MODELS: tuple[Unsupported, ...] = (
    Unsupported(
        "Grok-2",
        ("grok-2", "grok2", "grok_2"),
        "Grok-2 is another architecture than Grok-1 (a dense MLP beside the experts, capped logits, other positions), "
        "in parts cut for eight GPUs, and transformers has no class of it.",
        "Use Grok-1 converted to safetensors as docs/grok-1.md says, or another large mixture of experts: Mixtral "
        "8x22B, Qwen3-235B-A22B or gpt-oss-120b.",
    ),
    Unsupported(
        "MiniMax-Text-01 and MiniMax-M1 with code of their own",
        ("minimax_text_01", "minimax_m1"),
        "This checkpoint of MiniMax runs only with code from its repository, which Cloister never executes.",
        'Use the copy made for transformers ("model_type": "minimax"), whose name ends with -hf: '
        "MiniMax-Text-01-hf, MiniMax-M1-40k-hf or MiniMax-M1-80k-hf.",
    ),
    Unsupported(
        "Phi-3-small",
        ("phi3small",),
        "Phi-3-small runs only with code from its repository, which Cloister never executes.",
        "Use Phi-4-mini, Phi-3-medium or Phi-4.",
    ),
    _with_vision(
        "Phi-3-vision, Phi-3.5-vision or Phi-4-multimodal",
        ("phi3_v", "phi4mm", "phi4_multimodal"),
        "Use Phi-4-mini or Phi-4.",
    ),
    _with_vision("Gemma 3", ("gemma3",), 'Use a text-only checkpoint ("model_type": "gemma3_text").'),
    _with_vision("Gemma 3n", ("gemma3n",), "Use Gemma 3 1B, text only."),
    _with_vision("Kimi K2.5", ("kimi_k25",), "Use Kimi K2."),
    _with_vision("Llama 3.2", ("mllama",), "Use Llama 3.2 3B or Llama 3.1 8B."),
    _with_vision("Llama 4", ("llama4",), "Use Llama 3.3 70B or Qwen3-30B-A3B."),
    _with_vision("Mistral", ("mistral3", "pixtral"), "Use Mistral Small 24B (2501) or Mistral Nemo 12B."),
    _with_vision(
        "Qwen-VL", ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"), "Use Qwen2.5 or Qwen3 of the same size."
    ),
    Unsupported(
        "Qwen3-Next",
        ("qwen3_next",),
        "Qwen3-Next has layers of linear attention that training has no exact form of here.",
        "Use Qwen3-30B-A3B or Qwen3 32B.",
    ),
    Unsupported(
        "DeepSeek-V3.2",
        ("deepseek_v32",),
        "DeepSeek-V3.2 has sparse attention that training has no exact form of here.",
        "Use DeepSeek-V3.1, whose model_type is deepseek_v3.",
    ),
    Unsupported(
        "Granite 4, Granite 3 mixtures",
        ("granitemoehybrid", "granitemoe"),
        "Granite's mixtures of experts, and Granite 4's state-space layers, have no row in the table of families.",
        "Use Granite 3.3.",
    ),
)

UNSUPPORTED: dict[str, Unsupported] = {name: each for each in UNSUPPORTED_MODELS for name in each.types}
"""By model_type."""
