"""`make bench`: every measurement, one after another."""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = (
    "benchmarks.fetch",
    "benchmarks.prepare",
    "benchmarks.training",
    "benchmarks.checkpoints",
    "benchmarks.start_up",
    "benchmarks.memory_plan",
)


def main() -> int:
    """Run each in a process of its own; the first failure ends it."""
    for module in BENCHMARKS:
        sys.stdout.write(f"== {module}\n")
        sys.stdout.flush()
        code = subprocess.run([sys.executable, "-m", module], check=False).returncode
        if code != 0:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
