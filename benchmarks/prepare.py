"""Tokenise and mask: Cloister's prepare against TRL's SFTTrainer on the same rows, with the same number of processes.

    python benchmarks/prepare.py [--rows 20000] [--processes 2]

Both read English prose in chat rows with SmolLM2's tokenizer, and mask all but the assistant's turns. TRL is timed from
a dataset that is already loaded to labels in Arrow; its template carries the `{% generation %}` marks that it needs.
Cloister is timed from the file to stored shards, process start, checks, deduplication and hashing included, with the
model's own template. Imports of transformers are in neither figure. The labels of both are compared row by row before
the figures are printed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

MARKED_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou "
    "are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def main() -> None:
    """Run both and print rows per second and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20000)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    from support.smollm2_tokenizer import smollm2_tokenizer_folder

    with tempfile.TemporaryDirectory(prefix="cloister-benchmark-") as scratch:
        folder, tokenizer = Path(scratch), smollm2_tokenizer_folder()
        rows = make_rows(options.rows)
        ours, our_labels = time_ours(rows, folder, tokenizer, options.processes)
        theirs, their_labels = time_trl(rows, folder, tokenizer, options.processes)
    if our_labels != their_labels:
        sys.exit("The two disagree on tokens or labels; the figures would compare different work.")
    print(f"rows: {len(rows)}, processes: {options.processes}, tokens and labels equal")
    print(f"TRL:      {len(rows) / theirs:8.0f} rows/s ({theirs:.1f} s)")
    print(f"Cloister: {len(rows) / ours:8.0f} rows/s ({ours:.1f} s)")
    print(f"ratio:    {theirs / ours:8.2f}")


def make_rows(count: int) -> list[dict[str, Any]]:
    """Chats of one to three questions and answers, made of sentences from the standard library's documentation."""
    sentences = prose()
    generator = random.Random(0)
    rows = []
    for number in range(count):
        messages = []
        for _ in range(generator.randint(1, 3)):
            question = " ".join(generator.sample(sentences, generator.randint(1, 4)))
            answer = " ".join(generator.sample(sentences, generator.randint(1, 6)))
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        messages[0]["content"] = f"Request {number}. {messages[0]['content']}"
        rows.append({"messages": messages})
    return rows


def prose() -> list[str]:
    """Sentences from docstrings."""
    import argparse as a
    import asyncio as b
    import collections as c
    import datetime as d
    import email as e
    import inspect
    import logging as f
    import pathlib as g
    import subprocess as h
    import unittest as i

    found = []
    for module in (a, b, c, d, e, f, g, h, i):
        for _, value in sorted(inspect.getmembers(module)):
            for paragraph in (inspect.getdoc(value) or "").split("\n\n"):
                text = " ".join(paragraph.split())
                if 40 < len(text) < 300:
                    found.append(text)
    return sorted(set(found))


def time_ours(rows: list[dict[str, Any]], folder: Path, tokenizer: Path, processes: int) -> tuple[float, Counter[int]]:
    """Seconds from file to shards, and what came out."""
    from safetensors.numpy import load_file

    from cloister_api.run import Run
    from cloister_trainer.prepare.data import prepare_tokens
    from cloister_trainer.prepare.tokenizer import load_tokenizer
    from cloister_trainer.reporter import Reporter
    from cloister_trainer.storage import open_storage

    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {
        "model": {"uri": f"file://{folder}/model"},
        "dataset": {"uri": f"file://{data}", "validation": {"fraction": 0}},
        "output": {"uri": f"file://{folder}/out"},
    }
    identity = {"uid": "00000000-0000-4000-8000-000000000000", "namespace": "local", "name": "benchmark"}
    run = Run.model_validate({**identity, "spec": spec})
    load_tokenizer(tokenizer, None)
    start = time.perf_counter()
    _, index = prepare_tokens(run, open_storage(), tokenizer, 4096, folder / "scratch", Reporter(), processes)
    seconds = time.perf_counter() - start
    found: Counter[int] = Counter()
    for shard in index.train:
        tensors = load_file(folder / "out/runs" / run.uid / "tokens" / shard.file.name)
        labels = np.full(len(tensors["tokens"]), -100, np.int64)
        for example, first, last in tensors["labelSpans"]:
            at = tensors["offsets"][example]
            labels[at + first : at + last] = tensors["tokens"][at + first : at + last]
        for first, last in zip(tensors["offsets"][:-1], tensors["offsets"][1:], strict=True):
            found[hash((tensors["tokens"][first:last].tobytes(), labels[first:last].tobytes()))] += 1
    return seconds, found


def time_trl(
    rows: list[dict[str, Any]], folder: Path, tokenizer_folder: Path, processes: int
) -> tuple[float, Counter[int]]:
    """Seconds from loaded dataset to labels, and what came out."""
    import datasets
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.chat_template = MARKED_TEMPLATE
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    config = SFTConfig(
        output_dir=str(folder / "trl"),
        assistant_only_loss=True,
        max_length=4096,
        dataset_num_proc=processes,
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    few = datasets.Dataset.from_list(rows[:8])
    trainer = SFTTrainer(model=model, args=config, train_dataset=few, processing_class=tokenizer)
    dataset = datasets.Dataset.from_list(rows)
    start = time.perf_counter()
    prepared = trainer._prepare_dataset(dataset, tokenizer, config, False, None, "train")
    seconds = time.perf_counter() - start
    found: Counter[int] = Counter()
    for row in prepared:
        tokens, labels = np.array(row["input_ids"], np.uint32), np.array(row["labels"], np.int64)
        found[hash((tokens.tobytes(), labels.tobytes()))] += 1
    return seconds, found


if __name__ == "__main__":
    main()
