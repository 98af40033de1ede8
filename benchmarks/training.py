"""Training speed and memory against a plain loop of our own, a bare Hugging Face + PEFT loop, and TRL's SFTTrainer.

`python -m benchmarks.training` runs every contender in a process of its own, one after another, and prints tokens/s,
peak memory and the ratios. Memory is what all processes of a contender hold together, shared pages counted once (PSS).
`--model`, `--precision` and `--rows` measure a part; `--against own` only our own loop, `all` every setting of TRL;
more `--rounds` take each contender's median.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.memory import PeakMemory
from benchmarks.models import random_llama, smollm2

TIMEOUT_S = 1800
TRL_FOR = {"short": ("padded-4", "padded-8", "packed"), "long": ("padded-1", "padded-2", "packed")}
"""Settings of TRL worth trying; the first is the fastest on two cores."""
MODELS = {"SmolLM2-135M": smollm2, "Llama-100M": random_llama}


@dataclass(frozen=True)
class Setting:
    """What all contenders of one comparison share."""

    model: str
    folder: Path
    workload: str
    precision: str
    steps: int
    rounds: int = 1
    against: str = "best"


@dataclass(frozen=True)
class Contender:
    """A loop with its options."""

    name: str
    module: str
    variant: str = ""
    processes: int = 1


def contenders(setting: Setting) -> list[Contender]:
    """Every loop that is measured in a setting."""
    ours = [
        Contender("cloister", "cloister"),
        Contender("own loop", "own_loop"),
        Contender("cloister, 2 workers", "cloister", processes=2),
        Contender("own loop, 2 processes", "own_loop", processes=2),
    ]
    if setting.against == "own":
        return ours
    variants = TRL_FOR[setting.workload][: None if setting.against == "all" else 1]
    others = [Contender(f"TRL {name}", "trl_sft", variant=name) for name in variants]
    return [*ours, Contender("bare HF + PEFT, packed", "bare"), *others]


def measure(contender: Contender, setting: Setting) -> dict[str, Any]:
    """Run one contender; its result, or the end of what it said when it failed."""
    command = [sys.executable, "-m", f"benchmarks.contenders.{contender.module}"]
    distributed = contender.processes > 1 and contender.module == "own_loop"
    if distributed:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
        launcher += ["--nproc-per-node", str(contender.processes)]
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
    with tempfile.TemporaryFile("w+") as told:
        running = subprocess.Popen(
            [*command, *(word for pair in arguments.items() for word in pair)],
            env=os.environ
            | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            stdout=told,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            with PeakMemory(running.pid) as memory:
                running.wait(TIMEOUT_S)
        finally:
            running.kill()
        told.seek(0)
        output = told.read()
    results = [line for line in output.splitlines() if line.startswith("RESULT ")]
    if not results:
        sys.exit(f"{contender.name} ended without a result:\n{output[-2000:]}")
    found: dict[str, Any] = json.loads(results[-1].removeprefix("RESULT "))
    return {**found, "peakBytes": memory.peak_bytes}


def compare(setting: Setting, console: Console) -> None:
    """Measure all contenders of a setting, in turn in each round, and print their medians beside each other."""
    found: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in contenders(setting)}
    for _ in range(setting.rounds):
        for contender in contenders(setting):
            found[contender.name].append(measure(contender, setting))
            console.print(f"{contender.name}: {found[contender.name][-1]['tokensPerSecond']:.0f} tokens/s", style="dim")
    speed = {name: median(result["tokensPerSecond"] for result in results) for name, results in found.items()}
    memory = {name: max(result["peakBytes"] for result in results) for name, results in found.items()}
    title = f"{setting.model}, {setting.workload} rows, {setting.precision}, {setting.steps} steps"
    table = Table("contender", "tokens/s", "peak memory", "cloister's speed / this", title=title)
    for name in found:
        ours = speed["cloister, 2 workers" if name.endswith(("2 workers", "2 processes")) else "cloister"]
        table.add_row(name, f"{speed[name]:.0f}", f"{memory[name] / 2**30:.2f} GiB", f"{ours / speed[name]:.2f}")
    console.print(table)
    first = {name: median(result["firstStepSeconds"] for result in found[name]) for name in found if "cloister" in name}
    console.print(
        f"Driver to first step: {first['cloister']:.0f} s, with 2 workers {first['cloister, 2 workers']:.0f} s."
    )
    if trl := [name for name in found if name.startswith("TRL")]:
        best = max(trl, key=speed.__getitem__)
        console.print(
            f"Against TRL's fastest ({best}): {speed['cloister'] / speed[best]:.2f} x the speed, "
            f"{memory['cloister'] / memory[best]:.2f} x the memory.\n"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the chosen settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), help="only this model")
    parser.add_argument("--precision", choices=["BF16", "FP32"], help="only this precision")
    parser.add_argument("--rows", choices=["short", "long"], help="only these rows")
    parser.add_argument("--steps", type=int, default=4, help="measured steps of each contender (default: 4)")
    parser.add_argument("--rounds", type=int, default=1, help="times that each contender is measured (default: 1)")
    parser.add_argument(
        "--against", choices=["own", "best", "all"], default="best", help="others: none, TRL's best setting, or all"
    )
    options = parser.parse_args(arguments)
    console = Console(width=110)
    models = [options.model] if options.model else list(MODELS)
    precisions = [options.precision] if options.precision else ["BF16", "FP32"]
    workloads = [options.rows] if options.rows else ["short", "long"]
    for model, precision, workload in product(models, precisions, workloads):
        folder = MODELS[model]()
        compare(Setting(model, folder, workload, precision, options.steps, options.rounds, options.against), console)


if __name__ == "__main__":
    main()
