"""What a checkpoint costs a run.

    python -m benchmarks.checkpoints [--interval 30s] [--steps 60]

In one run, so that what else the machine does meets both alike: the steps during which a checkpoint is copied, hashed
and stored, against the steps right after them, for as many tokens. Prints what one adds at the median, and its share of
a run that makes one every 30 s; ends with 1 when that is above 2 %.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from rich.console import Console

from benchmarks.models import smollm2
from benchmarks.training import Contender, Setting, measure
from cloister_api.units import parse_duration

SPAN = 3
"""Steps after a checkpoint that may have to do with it, and steps after those to compare with."""
JUDGED_AT, ALLOWED_SHARE = "30s", 0.02


@dataclass(frozen=True)
class Pair:
    """The steps under one checkpoint, and those after them."""

    during_s: float
    after_s: float
    """For as many tokens as the steps under the checkpoint had."""


def pairs(run: dict[str, Any]) -> list[Pair]:
    """One for each checkpoint that no other one follows within 2 * SPAN steps.

    A step's row is written when the step after it has been made, except that the row of a checkpoint's own step comes
    just before the checkpoint: so the checkpoint and SPAN steps lie between the rows of step - 1 and step - 1 + SPAN.
    """
    times, tokens, saved = run["rowTimes"], run["rowTokens"], run["savedSteps"]
    found = []
    for step in saved:
        begin, middle, end = (step - 2 + by for by in (0, SPAN, 2 * SPAN))  # row of step n: index n - 1
        alone = not any(step < other < step + 2 * SPAN for other in saved)
        if alone and begin >= 0 and end < len(times):
            shares = sum(tokens[step : step + SPAN]) / sum(tokens[step + SPAN : step + 2 * SPAN])
            found.append(Pair(times[middle] - times[begin], (times[end] - times[middle]) * shares))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """One run, its pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interval", default="30s", help="between the checkpoints measured (default: 30s)")
    parser.add_argument("--steps", type=int, default=60, help="measured steps (default: 60)")
    options = parser.parse_args(arguments)
    setting = Setting("SmolLM2-135M", smollm2(), "short", "BF16", options.steps)
    found = pairs(measure(Contender("cloister", "cloister", variant=options.interval), setting))
    console = Console(width=110)
    if len(found) < 2:
        sys.exit(f"Only {len(found)} checkpoints have {2 * SPAN} steps to themselves: ask for more steps.")
    added = [pair.during_s - pair.after_s for pair in found]
    low, middle, high = quantiles(added, n=4)
    share = middle / parse_duration(JUDGED_AT)
    console.print(
        f"{len(found)} checkpoints, {SPAN} steps of {median(pair.after_s for pair in found) / SPAN:.1f} s under each: "
        f"one adds {middle:.2f} s (half of them {low:.2f} to {high:.2f} s), {share:.2%} of a run with one every "
        f"{JUDGED_AT}"
    )
    sys.exit(1 if share > ALLOWED_SHARE else 0)


if __name__ == "__main__":
    main()
