"""Runs inside the trainer's image: a tiny model fine-tuned by two ranks with ZeRO-2, published and verified."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

FOLDER = Path("/tmp/run")  # noqa: S108 (a file system of the container's own)
WORDS = 64
ROWS = 32
STEPS = 4


def main() -> int:
    """Write a model, rows and a job; run it; check what was published."""
    write_model(FOLDER / "model")
    write_rows(FOLDER / "rows.jsonl")
    job = FOLDER / "job.json"
    job.write_text(json.dumps(manifest()))
    os.environ["CLOISTER_SCRATCH"] = str(FOLDER / "scratch")
    for command in (["run", str(job)], ["verify", (FOLDER / "out").as_uri()]):
        done = subprocess.run(["cloister", *command], check=False)
        if done.returncode != 0:
            return done.returncode
    return 0


def write_model(folder: Path) -> None:
    """A Llama of two layers with random weights, and a tokenizer whose token i is the word w<i>."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, **sizes)).to(torch.bfloat16).save_pretrained(folder)
    special = {"unk_token": "w0", "eos_token": "w1"}
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nA tiny random model.\n")


def write_rows(path: Path) -> None:
    """Prompts and completions of a few words."""
    rows = [{"prompt": f"w{i % 50 + 2} w{i % 40 + 3}", "completion": f" w{i % 30 + 4}"} for i in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def manifest() -> dict[str, object]:
    """The job: two workers without GPUs."""
    return {
        "apiVersion": "cloister.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "tiny"},
        "spec": {
            "model": {"uri": (FOLDER / "model").as_uri()},
            "dataset": {"uri": (FOLDER / "rows.jsonl").as_uri(), "validation": {"fraction": 0}},
            "lora": {"rank": 4},
            "training": {"maxSteps": STEPS, "globalBatchSize": 8},
            "distribution": {"workers": 2, "gpusPerWorker": 0, "zeroStage": 2},
            "output": {"uri": (FOLDER / "out").as_uri()},
        },
    }


if __name__ == "__main__":
    sys.exit(main())
