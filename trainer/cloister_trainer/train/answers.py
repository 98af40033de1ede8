"""Held-out rows answered before and after training, shared by all ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cloister_api.layout import join
from cloister_api.status import ExactMatch
from cloister_trainer.prepare.shards import INDEX
from cloister_trainer.records import SampleAnswer, SampleRow, TokensIndex
from cloister_trainer.train.context import WorkerContext
from cloister_trainer.train.lora_layers import adapter_disabled
from cloister_trainer.train.samples import exact_matches, greedy_answers
from cloister_trainer.train.setup import Built


def answer_samples(
    context: WorkerContext, built: Built, folder: Path, beat: Callable[[], None]
) -> tuple[ExactMatch, list[SampleAnswer]] | None:
    """Exact matches and answers, complete on rank 0; None without sample rows. A collective."""
    from cloister_trainer.prepare.tokenizer import load_tokenizer

    rows = sample_rows(context)
    if not rows:
        return None
    tokenizer = load_tokenizer(folder, None)
    after = _all_answers(context, built, rows, tokenizer, beat)
    with adapter_disabled(built.module.model):
        before = _all_answers(context, built, rows, tokenizer, beat)
    counts = ExactMatch(rows=len(rows), before=exact_matches(rows, before), after=exact_matches(rows, after))
    answers = [
        SampleAnswer(prompt=tokenizer.decode(row.prompt), expected=row.answer, before=old, after=new)
        for row, old, new in zip(rows, before, after, strict=True)
    ]
    return counts, answers


def sample_rows(context: WorkerContext) -> list[SampleRow]:
    """The held-out rows to be answered, from beside the tokens: plan.json holds no row."""
    if context.run.spec.evaluation.samples == 0:
        return []
    index = context.storage.read(join(context.plan.tokens_uri, INDEX))
    return TokensIndex.model_validate_json(index).samples


def _all_answers(
    context: WorkerContext, built: Built, rows: list[SampleRow], tokenizer: Any, beat: Callable[[], None]
) -> list[str]:
    """Each rank answers every n-th row; at stage 3, where every forward pass is a collective, each answers all."""
    alone = context.world_size == 1 or built.engine.stage == 3
    mine = rows if alone else rows[context.rank :: context.world_size]
    answers = greedy_answers(built.module, mine, tokenizer, context.plan.data, context.device, beat)
    if alone:
        return answers
    gathered: list[list[str]] = [[] for _ in range(context.world_size)]
    dist.all_gather_object(gathered, answers)
    return [gathered[i % context.world_size][i // context.world_size] for i in range(len(rows))]
