"""What a checkpoint costs: the same run with a checkpoint at every step and with none before its end.

    python -m benchmarks.checkpoints [--steps 12]

Prints the seconds that one checkpoint adds to the run, and their share of it at the default interval.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console

from benchmarks.models import smollm2
from benchmarks.training import Contender, Setting, measure
from cloister_api.spec_training import Checkpoint
from cloister_api.units import parse_duration


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure without, with, and without again, so that a drift of the machine shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args(arguments)
    setting = Setting("SmolLM2-135M", smollm2(), "short", "BF16", options.steps)
    runs = [measure(Contender("cloister", "cloister", variant=interval), setting) for interval in ("10m", "0s", "10m")]
    before, during, after = (run["measuredSeconds"] for run in runs)
    count = runs[1]["checkpoints"] - runs[0]["checkpoints"]
    cost = (during - (before + after) / 2) / count
    console = Console(width=110)
    console.print(f"without: {before:.1f} s and {after:.1f} s, with {count}: {during:.1f} s")
    interval_s = parse_duration(Checkpoint().interval)
    console.print(f"one checkpoint adds {cost:.2f} s: {cost / interval_s:.2%} of the run at the default interval")


if __name__ == "__main__":
    main()
