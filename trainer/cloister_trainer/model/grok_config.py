"""The configuration of Grok-1 for transformers."""

from typing import Any

from transformers.configuration_utils import PreTrainedConfig, strict

from cloister_trainer.model.grok_layout import MODEL_TYPE


@strict
class Grok1Config(PreTrainedConfig):  # type: ignore[misc]
    """config.json of a converted Grok-1; the defaults are the published model's values."""

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = ["past_key_values"]
    default_theta = 10_000.0
    attribute_map = {
        "num_local_experts": "num_experts",
        "attn_logit_softcapping": "max_attn_value",  # the name by which training knows that scores are capped
        "logit_scale": "output_multiplier_scale",  # and that logits are scaled after the head
    }

    vocab_size: int = 131_072
    hidden_size: int = 6144
    intermediate_size: int = 32_768
    num_hidden_layers: int = 64
    num_attention_heads: int = 48
    num_key_value_heads: int = 8
    num_experts: int = 8
    num_experts_per_tok: int = 2
    attn_output_multiplier: float | int = 0.08838834764831845
    max_attn_value: float | int = 30.0
    embedding_multiplier_scale: float | int = 78.38367176906169
    output_multiplier_scale: float | int = 0.5773502691896257
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    hidden_act: str = "gelu_pytorch_tanh"
    rope_parameters: dict[str, Any] | None = None
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = True
