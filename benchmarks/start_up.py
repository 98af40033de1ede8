"""From the command to the first step: how long `cloister run` takes until it tells of step 1.

    python -m benchmarks.start_up [--rounds 2]

Runs the quickstart's rows and settings with SmolLM2 from a folder into a folder, once for each number of workers and
round, and ends each run at its first progress line. The alternative beside it is TRL's SFTTrainer in a fresh process,
from its start to its first optimizer step.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.models import ROOT, smollm2

EXAMPLE = ROOT / "examples" / "01-quickstart"
TIMEOUT_S = 300


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the moments of each start."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args(arguments)
    table = Table("contender", "seconds to the first step", title="Cold start, SmolLM2-135M, the quickstart's rows")
    for workers in (1, 2):
        seconds = [cloister_run(workers) for _ in range(options.rounds)]
        table.add_row(f"cloister run, {workers} worker(s)", ", ".join(f"{s:.1f}" for s in seconds))
    seconds = [trl() for _ in range(options.rounds)]
    table.add_row("TRL, 1 process", ", ".join(f"{s:.1f}" for s in seconds))
    Console(width=110).print(table)


def cloister_run(workers: int) -> float:
    """Seconds from the command to the line that tells step 1, which comes when the second step has been handed over."""
    with tempfile.TemporaryDirectory(prefix="cloister-bench-") as scratch:
        folder = Path(scratch)
        job = folder / "job.yaml"
        job.write_text(yaml.safe_dump(manifest(workers, folder)))
        with (folder / "stderr.txt").open("w+") as errors:
            started = time.monotonic()
            command = [str(Path(sys.executable).parent / "cloister"), "run", str(job)]
            running = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, env=os.environ | {"XDG_CACHE_HOME": scratch}, text=True
            )
            try:
                first = seconds_to_progress(running, started)
            finally:
                running.send_signal(signal.SIGINT)
                running.communicate(timeout=TIMEOUT_S)
            if first is None:
                errors.seek(0)
                sys.exit(f"cloister run ended before its first step:\n{errors.read()[-2000:]}")
            return first


def seconds_to_progress(running: subprocess.Popen[str], started: float) -> float | None:
    """Read event lines up to the first that tells a step."""
    lines: IO[str] | None = running.stdout
    for line in lines or ():
        if '"event":"progress"' in line:
            return time.monotonic() - started
    return None


def manifest(workers: int, folder: Path) -> dict[str, Any]:
    """The quickstart's job between folders."""
    job: dict[str, Any] = yaml.safe_load((EXAMPLE / "job.yaml").read_text())
    spec = job["spec"]
    spec["model"] = {"uri": smollm2().as_uri()}
    spec["dataset"] = {"uri": (EXAMPLE / "train.jsonl").as_uri()}
    spec["output"] = {"uri": (folder / "adapters").as_uri()}
    spec["distribution"]["workers"] = workers
    spec.pop("evaluation")
    return job


def trl() -> float:
    """Seconds from a fresh interpreter to the end of TRL's first optimizer step on the same rows."""
    started = time.monotonic()
    finished = subprocess.run(
        [sys.executable, "-c", TRL_START, str(smollm2()), str(EXAMPLE / "train.jsonl")],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if finished.returncode != 0:
        sys.exit(f"TRL ended without a step:\n{finished.stderr[-2000:]}")
    return time.monotonic() - started


TRL_START = """
import sys, tempfile
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
import json
rows = [json.loads(line) for line in open(sys.argv[2])]
with tempfile.TemporaryDirectory() as folder:
    SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="bfloat16"),
        args=SFTConfig(output_dir=folder, max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=4,
                       use_cpu=True, bf16=True, save_strategy="no", report_to=[], dataloader_pin_memory=False,
                       gradient_checkpointing=False, disable_tqdm=True),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(sys.argv[1]),
        peft_config=LoraConfig(r=16, task_type="CAUSAL_LM", target_modules="all-linear"),
    ).train()
"""


if __name__ == "__main__":
    main()
