"""Who a rank is and what it works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cloister_api.run import Run
from cloister_trainer.records import PlanFile
from cloister_trainer.storage import Storage
from cloister_trainer.train.messages import Sink


@dataclass(frozen=True)
class WorkerContext:
    """What a rank is given. torch.distributed's default group is initialised before it starts."""

    run: Run
    plan: PlanFile
    attempt: int
    rank: int
    world_size: int
    node: str
    device: torch.device
    storage: Storage
    sink: Sink
    scratch: Path
    """A folder of this run on this node."""
    models: Path
    """Weights by fingerprint, shared by the runs on this node."""
    evicted: Callable[[], bool] = lambda: False
    """Whether this process was asked to go (SIGTERM)."""
    driver_egress: dict[str, Any] = field(default_factory=dict)
    """The driver's own egress proof."""

    @property
    def is_first(self) -> bool:
        """Rank 0 decides, writes and speaks for all."""
        return self.rank == 0

    @property
    def log_path(self) -> Path:
        """Where this rank's log lies on the node."""
        return self.scratch / "logs" / str(self.attempt) / f"rank-{self.rank:02d}.log"
