"""`python -m cloister_operator.readiness`: print the table; exit code 1 when something that is required is missing."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from cloister_operator.cluster import ClusterError, connect
from cloister_operator.metrics import count_call
from cloister_operator.readiness.facts import Facts
from cloister_operator.readiness.gather import gather
from cloister_operator.readiness.plan import PLAN_FILE, Plan, read_plan
from cloister_operator.readiness.table import is_ready, render, rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Look around, run the job, judge."""
    parser = argparse.ArgumentParser(prog="python -m cloister_operator.readiness", description=__doc__)
    parser.add_argument("--plan", type=Path, default=PLAN_FILE, metavar="PATH", help=f"default: {PLAN_FILE}")
    parser.add_argument("--patience", type=float, default=180, metavar="SECONDS", help="for an image to be pulled")
    options = parser.parse_args(arguments)
    plan = read_plan(options.plan, options.patience)
    try:
        facts = asyncio.run(_gather(plan))
    except ClusterError as error:
        sys.stderr.write(f"The Kubernetes API did not do what the test asked: {error}\n")
        return 1
    table = rows(facts, plan.expected)
    _say("\n" + render(table))
    return 0 if is_ready(table) else 1


async def _gather(plan: Plan) -> Facts:
    async with connect(count_call) as cluster:
        return await gather(cluster, plan, _say)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
