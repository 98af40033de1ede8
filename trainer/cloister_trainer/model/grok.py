"""Grok-1 for transformers, which has no class of it: the mathematics of xAI's published model.py (github.com/xai-org/
grok-1), the names of the checkpoints that were converted to safetensors. Its weights are never unpickled.

Per layer: h += norm(attention(norm(h))), then h += norm(experts(norm(h))), all norms RMS with a float32 scale. The
embedding is multiplied by `embedding_multiplier_scale`, logits by `output_multiplier_scale`, attention scores by
`attn_output_multiplier` before they pass through 30 tanh(x / 30). The router's softmax runs over all experts in float32
and the chosen two keep their shares: they do not add up to 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter, WeightRenaming
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.mixtral.modeling_mixtral import (
    MixtralExperts,
    MixtralRotaryEmbedding,
    apply_rotary_pos_emb,
    repeat_kv,
)
from transformers.utils import can_return_tuple

from cloister_trainer.model.grok_config import Grok1Config
from cloister_trainer.model.grok_layout import MODEL_TYPE


class Embedding(nn.Embedding):
    """Token embeddings [tokens, hidden], multiplied."""

    def __init__(self, config: Grok1Config) -> None:
        super().__init__(config.vocab_size, config.hidden_size)
        self.multiplier = config.embedding_multiplier_scale

    def forward(self, input: Tensor) -> Tensor:
        """[...] to [..., hidden]."""
        return super().forward(input) * self.multiplier


class RMSNorm(nn.Module):
    """Normed and scaled in float32, handed on in the type that came."""

    def __init__(self, config: Grok1Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.epsilon = config.rms_norm_eps

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., hidden] to the same."""
        wide = hidden.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return (self.weight.float() * normed).to(hidden.dtype)


class Attention(nn.Module):
    """Grouped queries with rotary positions; scores are capped, so no fused kernel computes them."""

    def __init__(self, config: Grok1Config, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self.multiplier = config.attn_output_multiplier
        self.cap = config.max_attn_value
        key_width = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_width, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: Any) -> Tensor:
        """[batch, length, hidden] to the same; `mask` is added to the scores."""
        shape = (*hidden.shape[:-1], -1, self.head_dim)
        query, key, value = (
            projection(hidden).view(shape).transpose(1, 2) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        rotated = apply_rotary_pos_emb(query.float(), key.float(), *rotary)
        query, key = (each.to(value.dtype) for each in rotated)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        key, value = repeat_kv(key, self.groups), repeat_kv(value, self.groups)
        scores = torch.matmul(query, key.transpose(2, 3)).float() * self.multiplier
        scores = self.cap * torch.tanh(scores / self.cap)
        if mask is not None:
            scores = scores + mask
        weights = torch.softmax(scores, dim=-1).to(value.dtype)
        return self.o_proj(torch.matmul(weights, value).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Router(nn.Module):
    """Which experts a token visits, and their shares: [tokens, chosen] each. In float32, whatever autocast says."""

    def __init__(self, config: Grok1Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.chosen = config.num_experts_per_tok

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[tokens, hidden] to both."""
        with torch.autocast(tokens.device.type, enabled=False):
            logits = nn.functional.linear(tokens.float(), self.weight.float())
        shares, experts = torch.softmax(logits, dim=-1).topk(self.chosen, dim=-1)
        return experts, shares


class Experts(MixtralExperts):  # type: ignore[misc]
    """All experts of a layer: linear_1(gelu(linear(x)) * linear_v(x)), with the GELU that JAX computes by default."""

    def __init__(self, config: Grok1Config) -> None:
        super().__init__(config)
        self.act_fn = ACT2FN["gelu_pytorch_tanh"]


class MoeBlock(nn.Module):
    """Router and experts."""

    def __init__(self, config: Grok1Config) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """[batch, length, hidden] to the same."""
        tokens = hidden.reshape(-1, hidden.shape[-1])
        experts, shares = self.gate(tokens)
        return self.experts(tokens, experts, shares.to(tokens.dtype)).view_as(hidden)  # type: ignore[no-any-return]


class DecoderLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    """One layer; each half is normed before and after."""

    def __init__(self, config: Grok1Config, layer_idx: int) -> None:
        super().__init__()
        self.attn = Attention(config, layer_idx)
        self.moe_block = MoeBlock(config)
        self.pre_attn_norm = RMSNorm(config)
        self.post_attn_norm = RMSNorm(config)
        self.pre_moe_norm = RMSNorm(config)
        self.post_moe_norm = RMSNorm(config)

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: Any) -> Tensor:
        """[batch, length, hidden] to the same."""
        hidden = hidden + self.post_attn_norm(self.attn(self.pre_attn_norm(hidden), rotary, mask, cache))
        return hidden + self.post_moe_norm(self.moe_block(self.pre_moe_norm(hidden)))  # type: ignore[no-any-return]


class Grok1PreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What transformers wants to know of both classes."""

    config_class = Grok1Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Experts | Router):
            for weight in module.parameters(recurse=False):
                init.normal_(weight, mean=0.0, std=self.config.initializer_range)


class Grok1Model(Grok1PreTrainedModel):
    """From token ids [batch, length] to hidden states [batch, length, hidden] after the final norm."""

    def __init__(self, config: Grok1Config) -> None:
        super().__init__(config)
        self.embed_tokens = Embedding(config)
        self.layers = nn.ModuleList([DecoderLayer(config, number) for number in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config)
        self.rotary_emb = MixtralRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **_others: Any,
    ) -> BaseModelOutputWithPast:
        """As transformers' decoders; what else is passed (training's segments) has no effect."""
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if past_key_values is None and (self.config.use_cache if use_cache is None else use_cache):
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(hidden.shape[1], device=hidden.device) + seen)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        rotary = self.rotary_emb(hidden.float(), position_ids)
        for layer in self.layers:
            hidden = layer(hidden, rotary, mask, past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), past_key_values=past_key_values)


class Grok1ForCausalLM(Grok1PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """With the head, which is the embedding's matrix."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: Grok1Config) -> None:
        super().__init__(config)
        self.model = Grok1Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self, input_ids: Any = None, labels: Any = None, logits_to_keep: int | Tensor = 0, **others: Any
    ) -> CausalLMOutputWithPast:
        """Logits of all tokens, of the last `logits_to_keep`, or of those at these positions."""
        output = self.model(input_ids=input_ids, **others)
        kept = slice_logits_to_keep(output.last_hidden_state, logits_to_keep)
        logits = self.lm_head(kept) * self.config.output_multiplier_scale
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=output.past_key_values)


def register() -> None:
    """Make transformers' Auto classes know Grok-1; again and again does no harm."""
    AutoConfig.register(MODEL_TYPE, Grok1Config, exist_ok=True)
    AutoModelForCausalLM.register(Grok1Config, Grok1ForCausalLM, exist_ok=True)
    fuse = [MergeModulelist(dim=0), Concatenate(dim=1)]
    stored = [
        WeightRenaming("norm.scale", "norm.weight"),
        WeightConverter([".experts.*.linear.weight", ".experts.*.linear_v.weight"], ".experts.gate_up_proj", fuse),
        WeightConverter([".experts.*.linear_1.weight"], ".experts.down_proj", [MergeModulelist(dim=0)]),
    ]
    register_checkpoint_conversion_mapping(MODEL_TYPE, stored, overwrite=True)
