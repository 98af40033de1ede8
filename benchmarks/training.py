"""Training speed and memory against a plain loop of our own, a bare Hugging Face + PEFT loop, and TRL's SFTTrainer.

`python -m benchmarks.training` runs every contender in a process of its own, one after another, and prints tokens/s,
peak memory and the ratios. `--quick` measures SmolLM2 in bfloat16 on short rows only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.contenders.trl_sft import VARIANTS
from benchmarks.models import random_llama, smollm2

TIMEOUT_S = 1800
LONG_ROWS_VARIANT = "padded-1"


@dataclass(frozen=True)
class Setting:
    """What all contenders of one comparison share."""

    model: str
    folder: Path
    workload: str
    precision: str
    steps: int


@dataclass(frozen=True)
class Contender:
    """A loop with its options."""

    name: str
    module: str
    variant: str = ""
    processes: int = 1


def contenders(setting: Setting) -> list[Contender]:
    """Every loop that is measured in a setting."""
    variants = [name for name in VARIANTS if (name == LONG_ROWS_VARIANT) == (setting.workload == "long")]
    return [
        Contender("cloister", "cloister"),
        Contender("own loop", "own_loop"),
        Contender("bare HF + PEFT, packed", "bare"),
        *(Contender(f"TRL {name}", "trl_sft", variant=name) for name in variants),
        Contender("cloister, 2 workers", "cloister", processes=2),
        Contender("own loop, 2 processes", "own_loop", processes=2),
    ]


def measure(contender: Contender, setting: Setting) -> dict[str, Any]:
    """Run one contender; its result, or the end of what it said when it failed."""
    command = [sys.executable, "-m", f"benchmarks.contenders.{contender.module}"]
    distributed = contender.processes > 1 and contender.module == "own_loop"
    if distributed:
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(contender.processes), "--master-port", "0"]
        command[1:2] = [*launcher, "-m"]
    cores = len(os.sched_getaffinity(0))
    threads = max(1, cores // contender.processes)
    arguments = {
        "--model": str(setting.folder),
        "--workload": setting.workload,
        "--precision": setting.precision,
        "--steps": str(setting.steps),
        "--variant": contender.variant,
        "--processes": str(contender.processes),
    }
    finished = subprocess.run(
        [*command, *(word for pair in arguments.items() for word in pair)],
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    results = [line for line in finished.stdout.splitlines() if line.startswith("RESULT ")]
    if not results:
        sys.exit(f"{contender.name} ended without a result:\n{(finished.stdout + finished.stderr)[-2000:]}")
    found: dict[str, Any] = json.loads(results[-1].removeprefix("RESULT "))
    return found


def compare(setting: Setting, console: Console) -> dict[str, dict[str, Any]]:
    """Measure all contenders of a setting and print them beside each other."""
    found = {}
    for contender in contenders(setting):
        found[contender.name] = measure(contender, setting)
        console.print(f"{contender.name}: {found[contender.name]['tokensPerSecond']:.0f} tokens/s", style="dim")
    title = f"{setting.model}, {setting.workload} rows, {setting.precision}, {setting.steps} steps"
    table = Table("contender", "tokens/s", "peak memory", "cloister / this", title=title)
    for name, result in found.items():
        ours = found["cloister, 2 workers" if name.endswith(("2 workers", "2 processes")) else "cloister"]
        ratio = ours["tokensPerSecond"] / result["tokensPerSecond"]
        memory = f"{result['peakBytes'] / 2**30:.2f} GiB"
        table.add_row(name, f"{result['tokensPerSecond']:.0f}", memory, f"{ratio:.2f}")
    console.print(table)
    trl = {name: result for name, result in found.items() if name.startswith("TRL")}
    best = max(trl, key=lambda name: trl[name]["tokensPerSecond"])
    memory_ratio = found["cloister"]["peakBytes"] / min(result["peakBytes"] for result in trl.values())
    console.print(
        f"Against TRL's best ({best}): {found['cloister']['tokensPerSecond'] / trl[best]['tokensPerSecond']:.2f} x the "
        f"speed; {memory_ratio:.2f} x the memory of its leanest. Driver to first step: "
        f"{found['cloister']['firstStepSeconds']} s, with 2 workers "
        f"{found['cloister, 2 workers']['firstStepSeconds']} s.\n"
    )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the chosen settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="SmolLM2, BF16, short rows only")
    parser.add_argument("--steps", type=int, default=6, help="measured steps of each contender (default: 6)")
    options = parser.parse_args(arguments)
    console = Console(width=110)
    models = {"SmolLM2-135M": smollm2()} if options.quick else {"SmolLM2-135M": smollm2(), "Llama-100M": random_llama()}
    precisions = ["BF16"] if options.quick else ["BF16", "FP32"]
    workloads = ["short"] if options.quick else ["short", "long"]
    for (model, folder), precision, workload in product(models.items(), precisions, workloads):
        compare(Setting(model, folder, workload, precision, options.steps), console)


if __name__ == "__main__":
    main()
