"""`support.tiny_driver` that waits for workers only briefly: neither for lost ones, nor before it takes new ones."""

from __future__ import annotations

import sys

from cloister_trainer.train import elastic
from support import tiny_driver

if __name__ == "__main__":
    elastic.WORKERS_PATIENCE_S, elastic.GROW_AFTER_S, elastic.LOOK_INTERVAL_S = 1.0, 1.0, 0.25
    sys.exit(tiny_driver.main(*sys.argv[1:]))
