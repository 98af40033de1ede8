"""A bare Hugging Face + PEFT loop with packed rows, as one writes it by hand."""

from __future__ import annotations

import contextlib
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from benchmarks.contenders.workload import (
    ALPHA,
    LEARNING_RATE,
    MICRO_BATCH_TOKENS,
    RANK,
    TARGETS,
    WARM_UP_STEPS,
    Options,
    Row,
    options,
    report,
)


def main(asked: Options) -> None:
    """Train and report."""
    dtype = torch.bfloat16 if asked.precision == "BF16" else torch.float32
    base = AutoModelForCausalLM.from_pretrained(asked.model, dtype=dtype)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE, weight_decay=0)
    rows = asked.workload.rows(asked.steps, base.config.vocab_size)
    size = asked.workload.batch_size
    tokens, losses, started = 0, [], 0.0
    for step in range(asked.steps + WARM_UP_STEPS):
        if step == WARM_UP_STEPS:
            tokens, started = 0, time.perf_counter()
        batch = rows[step * size : (step + 1) * size]
        label_tokens = sum(len(row.tokens) - max(1, row.first_label) for row in batch)
        total = 0.0
        for packed in pack(batch):
            context = torch.autocast("cpu", torch.bfloat16) if dtype is torch.bfloat16 else contextlib.nullcontext()
            with context:
                mean = model(**packed, use_cache=False).loss
            loss = mean * (packed["labels"][:, 1:] != -100).sum() / label_tokens
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += sum(len(row.tokens) for row in batch)
        losses.append(total)
    report(tokens, time.perf_counter() - started, losses)


def pack(batch: list[Row]) -> list[dict[str, torch.Tensor]]:
    """Rows laid end to end into micro-batches, with positions that restart."""
    bins: list[list[Row]] = [[]]
    for row in batch:
        if sum(len(other.tokens) for other in bins[-1]) + len(row.tokens) > MICRO_BATCH_TOKENS and bins[-1]:
            bins.append([])
        bins[-1].append(row)
    return [_packed(rows) for rows in bins]


def _packed(rows: list[Row]) -> dict[str, torch.Tensor]:
    ids, labels, positions = [], [], []
    for row in rows:
        tokens = torch.from_numpy(row.tokens)
        target = tokens.clone()
        target[: max(1, row.first_label)] = -100
        ids.append(tokens)
        labels.append(target)
        positions.append(torch.arange(len(tokens)))
    return {
        "input_ids": torch.cat(ids)[None],
        "labels": torch.cat(labels)[None],
        "position_ids": torch.cat(positions)[None],
    }


if __name__ == "__main__":
    main(options())
