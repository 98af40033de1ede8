"""Greedy answers to held-out rows, by batches with a key-value cache, and how many equal the expected answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cloister_trainer.records import SampleRow, TokensIndex
from cloister_trainer.train.attention import stock_attention
from cloister_trainer.train.model import TrainingModule

MOST_NEW_TOKENS = 512
_BATCH_TOKENS = 16384
"""Prompt and answer tokens of one batch of rows, padding included: bounds the key-value cache."""
_BATCH_ROWS = 64


def greedy_answers(
    module: TrainingModule,
    rows: Sequence[SampleRow],
    tokenizer: Any,
    data: TokensIndex,
    device: torch.device,
    beat: Callable[[], None],
) -> list[str]:
    """The model's most likely answer to each row's prompt, decoded without special tokens, in the rows' order.

    An answer ends before the stop token, or after half as many tokens again as the longest expected answer has, 512 at
    most. `beat` is called after each token. At stage 3 every rank must be given the same rows, since each forward pass
    is a collective.
    """
    limit = new_token_limit(rows, tokenizer)
    answers = [""] * len(rows)
    with torch.no_grad(), module.evaluating(), stock_attention(module.base), module.precision(device):
        for batch in _batches(rows, limit):
            generated = _generate(module.base, [rows[i].prompt for i in batch], _Stop.of(data), limit, device, beat)
            for i, tokens in zip(batch, generated, strict=True):
                answers[i] = tokenizer.decode(tokens, skip_special_tokens=True)
    return answers


def exact_matches(rows: Sequence[SampleRow], answers: Sequence[str]) -> int:
    """How many answers equal the expected one, white space at both ends aside."""
    return sum(row.answer.strip() == answer.strip() for row, answer in zip(rows, answers, strict=True))


def new_token_limit(rows: Sequence[SampleRow], tokenizer: Any) -> int:
    """Tokens that an answer may have: half as many again as the longest expected one, and room for white space."""
    longest = max((len(tokenizer(row.answer, add_special_tokens=False).input_ids) for row in rows), default=0)
    return min(MOST_NEW_TOKENS, longest * 3 // 2 + 8)


@dataclass(frozen=True)
class _Stop:
    token: int | None
    pad: int

    @classmethod
    def of(cls, data: TokensIndex) -> _Stop:
        return cls(data.stop_token_id, data.pad_token_id)


def _batches(rows: Sequence[SampleRow], limit: int) -> list[list[int]]:
    """Indices of rows of similar length, so that little is padding."""
    batches: list[list[int]] = []
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i].prompt)):
        widest = len(rows[batches[-1][0]].prompt) + limit if batches else 0
        full = not batches or len(batches[-1]) == _BATCH_ROWS or (len(batches[-1]) + 1) * widest > _BATCH_TOKENS
        batches.append([i]) if full else batches[-1].append(i)
    return batches


def _generate(
    model: Any, prompts: list[list[int]], stop: _Stop, limit: int, device: torch.device, beat: Callable[[], None]
) -> list[list[int]]:
    """Greedy decoding of left-padded prompts; a row that has stopped runs along until all have."""
    from transformers import DynamicCache

    width = max(map(len, prompts))
    ids = torch.tensor([[stop.pad] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    tokens: list[Tensor] = []
    stopped = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    while len(tokens) < limit and not bool(stopped.all()):
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        best = output.logits[:, -1].argmax(-1)
        tokens.append(best)
        if stop.token is not None:
            stopped |= best == stop.token
        ids, positions = best[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        beat()
    generated: list[list[int]] = torch.stack(tokens, dim=1).tolist() if tokens else [[] for _ in prompts]
    return [row[: row.index(stop.token)] if stop.token in row else row for row in generated]
