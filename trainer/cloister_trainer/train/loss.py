"""Cross-entropy of label tokens, summed; head and softmax see only them, in chunks, so full logits never exist.

The base's head is frozen, so the gradient with respect to the hidden states is computed in the forward pass, chunk by
chunk, and kept ([labels, hidden]) in place of logits: no recomputation, and memory for one chunk of logits. The idea
is Liger Kernel's fused linear cross-entropy (Hsu et al. 2024).

At ZeRO stage 3 the head is gathered once for all chunks, with or without labels: ranks with different numbers of labels
then make the same collectives.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

_CHUNK_LOGITS = {"cpu": 8 * 2**20, "cuda": 64 * 2**20}


def chunk_rows(vocabulary: int, device_type: str) -> int:
    """Label tokens in a chunk, so that its logits are few enough for the device."""
    return max(16, _CHUNK_LOGITS.get(device_type, _CHUNK_LOGITS["cuda"]) // vocabulary)


@dataclass(frozen=True)
class Head:
    """From hidden states [n, H] to logits [n, V], with what some families do to logits after the projection."""

    projection: nn.Linear
    """Frozen."""
    vocabulary: int
    scale: float = 1.0
    """Logits are multiplied by it (Granite divides by logits_scaling, Cohere multiplies by logit_scale)."""
    softcap: float | None = None
    """Logits become softcap * tanh(logits / softcap) (Gemma 2's final_logit_softcapping)."""

    @classmethod
    def of(cls, model: Any) -> Head:
        """The head of a transformers causal language model."""
        config = model.config
        scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1)
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(model.get_output_embeddings(), config.vocab_size, scale, softcap)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, the projection's parameters are whole. A collective at stage 3."""
        parameters = list(self.projection.parameters())
        if not any(hasattr(parameter, "ds_id") for parameter in parameters):
            yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameters):
            yield

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, V] of hidden states [n, H], in the type of the matrix product; to be called inside `gathered`."""
        logits = nn.functional.linear(hidden, self.projection.weight, self.projection.bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def summed_cross_entropy(hidden: Tensor, labels: Tensor, head: Head) -> Tensor:
    """The sum over label tokens of -log softmax(logits)[label], a float32 scalar.

    Shapes: hidden [L, H], labels int64 [L]. Without labels the result is 0, still connected to `hidden`: ranks whose
    micro-batch has none take part in the backward pass's collectives. A collective at stage 3.
    """
    with head.gathered():
        if torch.is_grad_enabled():
            return cast(Tensor, _ChunkedLoss.apply(hidden, labels, head))
        rows = range(0, len(labels), chunk_rows(head.vocabulary, hidden.device.type))
        losses = [_chunk_loss(hidden[i : i + rows.step], labels[i : i + rows.step], head) for i in rows]
        return torch.stack(losses).sum() if losses else hidden.new_zeros((), dtype=torch.float32)


def _chunk_loss(hidden: Tensor, labels: Tensor, head: Head) -> Tensor:
    return nn.functional.cross_entropy(head.logits(hidden).float(), labels, reduction="sum")


class _ChunkedLoss(torch.autograd.Function):
    """Forward computes the loss and its gradients; backward scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, head: Head) -> Tensor:
        loss = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.zeros_like(hidden)
        step = chunk_rows(head.vocabulary, hidden.device.type)
        for start in range(0, len(labels), step):
            rows = slice(start, start + step)
            chunk_loss, gradient[rows] = _chunk_gradient(hidden[rows], labels[rows], head)
            loss += chunk_loss
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0], None, None


def _chunk_gradient(hidden: Tensor, labels: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """The chunk's loss, and its gradient with respect to `hidden`: d loss / d logits = p - onehot."""
    with torch.enable_grad():
        leaf = hidden.detach().requires_grad_()
        logits = head.logits(leaf)
    log_p = torch.log_softmax(logits.detach(), dim=-1, dtype=torch.float32)
    loss = -log_p.gather(1, labels[:, None]).sum()
    logits_gradient = log_p.exp_().scatter_add_(1, labels[:, None], log_p.new_full((len(labels), 1), -1.0))
    (gradient,) = torch.autograd.grad(logits, leaf, logits_gradient.to(logits.dtype))
    return loss, gradient
