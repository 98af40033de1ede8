"""A random model of Llama 3.1 8B's shape on one GPU: tokens/s, MFU, memory against the plan, and a checkpoint's stall.

    python -m benchmarks.gpu [--shape LLAMA_8B] [--length 4096] [--steps 6] [--folder /dev/shm/cloister-gpu]

Needs a CUDA device, and in `--folder` room for the weights twice (32 GB for 8B). Every line is a process of its own.
MFU is 4 N x tokens/s over the GPU's dense bf16 rate: forward and backward through N frozen weights that multiply (all
but the input embedding), without their own gradients, without attention's products and without recomputation.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.models import shape

PEAK_FLOPS = {"H100 80GB HBM3": 989.4e12, "H200": 989.4e12, "A100": 312e12}
"""Dense bf16 by the data sheets, for parts of the names that CUDA gives. An H100 as a PCIe card is slower."""
VARIANTS: dict[str, dict[str, Any]] = {
    "one example a micro-batch": {"training": {"gradientCheckpointing": "Never", "microBatchTokens": 4096}},
    "the plan's choice": {},
    "recomputing": {"training": {"gradientCheckpointing": "Always"}},
    "NF4": {"lora": {"quantization": "NF4"}},
}
TIMEOUT_S = 600
GB = 1e9


def main(arguments: Sequence[str] | None = None) -> int:
    """One line a variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="LLAMA_8B", choices=["LLAMA_8B", "LLAMA_1B", "SMALL"])
    parser.add_argument("--length", type=int, default=4096, help="tokens of each example (default: 4096)")
    parser.add_argument("--batch", type=int, default=16, help="examples of a global batch (default: 16)")
    parser.add_argument("--steps", type=int, default=6, help="measured steps (default: 6)")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/cloister-gpu"), help="where the weights lie")
    parser.add_argument("--only", choices=VARIANTS, action="append", help="this variant; may be given again")
    parser.add_argument("--keep", action="store_true", help="leave the weights for the next time")
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("No GPU here: nothing is measured.")
        return 0
    console, found = Console(width=150), {}
    shared = {"shape": options.shape, "length": options.length, "batch": options.batch, "steps": options.steps}
    try:
        for name in options.only or VARIANTS:
            found[name] = measure({**shared, "folder": str(options.folder), **VARIANTS[name]})
            console.print(f"{name}: {found[name].get('tokensPerSecond', 'failed')}", style="dim")
            if options.json:
                options.json.write_text(json.dumps(found))
    finally:
        if not options.keep:
            shutil.rmtree(options.folder, ignore_errors=True)
    console.print(table(found, options.shape, options.length))
    return 0 if all("error" not in each for each in found.values()) else 1


def measure(asked: dict[str, Any]) -> dict[str, Any]:
    """One variant in a process of its own; what it said last when it failed."""
    command = [sys.executable, "-m", "benchmarks.contenders.gpu", json.dumps(asked)]
    environment = os.environ | {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        said = done.stdout
    except subprocess.TimeoutExpired as late:
        said = (late.stdout or b"").decode(errors="replace")
    results = [line for line in said.splitlines() if line.startswith("RESULT ")]
    if not results:
        print(said[-3000:], flush=True)
        return {"error": said[-3000:]}
    result: dict[str, Any] = json.loads(results[-1].removeprefix("RESULT "))
    return result


def table(found: dict[str, dict[str, Any]], model: str, length: int) -> Table:
    """Speed and memory of every variant."""
    device = torch.cuda.get_device_name()
    peak = next((rate for part, rate in PEAK_FLOPS.items() if part in device), None)
    rows = Table(title=f"{model}, examples of {length} tokens, {device}")
    for head in (
        *("variant", "stage", "micro-batch", "tokens/s", "MFU", "allocated", "reserved", "plan", "plan / allocated"),
        *("stall", "checkpoint"),
    ):
        rows.add_column(head, justify="left" if head == "variant" else "right")
    for variant, one in found.items():
        if "error" in one:
            rows.add_row(variant, "failed")
            continue
        rate = 4 * multiplying(model) * one["tokensPerSecond"]
        rows.add_row(
            variant + (", recomputing" if one["recomputes"] and "recomputing" not in variant else ""),
            str(one["zeroStage"]),
            f"{one['microBatchTokens']:,}",
            f"{one['tokensPerSecond']:,.0f}",
            f"{rate / peak:.1%}" if peak else "unknown",
            f"{one['allocated'] / GB:.2f} GB",
            f"{one['reserved'] / GB:.2f} GB",
            f"{one['planned'] / GB:.2f} GB",
            f"{one['planned'] / one['allocated']:.2f}",
            f"{one['stallSeconds'] * 1000:.0f} ms",
            f"{one['checkpointBytes'] / 1e6:.0f} MB",
        )
    return rows


def multiplying(name: str) -> int:
    """Weights of a Llama that take part in products: all but the input embedding and the norms."""
    sizes = shape(name)
    hidden, heads, groups = sizes["hidden_size"], sizes["num_attention_heads"], sizes["num_key_value_heads"]
    layer = 2 * hidden * hidden + 2 * hidden * hidden * groups // heads + 3 * hidden * sizes["intermediate_size"]
    return int(sizes["num_hidden_layers"] * layer + sizes["vocab_size"] * hidden)


if __name__ == "__main__":
    sys.exit(main())
