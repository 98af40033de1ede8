"""`support.tiny_driver` that waits for workers only briefly: neither for lost ones, nor before it takes new ones."""

from __future__ import annotations

import sys

from cloister_trainer.train import elastic
from cloister_trainer.train.elastic import Workers
from support import tiny_driver

for_next_start = Workers.for_next_start


def hastily_after_the_first(workers: Workers) -> int:
    """The first start has all the time that it takes on a busy machine."""
    size = for_next_start(workers)
    elastic.WORKERS_PATIENCE_S = 1.0
    return size


if __name__ == "__main__":
    elastic.GROW_AFTER_S, elastic.LOOK_INTERVAL_S = 1.0, 0.25
    Workers.for_next_start = hastily_after_the_first  # type: ignore[method-assign]
    sys.exit(tiny_driver.main(*sys.argv[1:]))
