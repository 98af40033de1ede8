"""The rows and models that every contender trains on, and how it tells what it measured."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister_api.spec_training import Lora
from cloister_trainer.model.targets import Targets

WARM_UP_STEPS = 2
RANK = 16
ALPHA = 32.0
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MICRO_BATCH_TOKENS = 2048
LEARNING_RATE = 2e-4
TRL_VARIANTS: dict[str, dict[str, Any]] = {
    "padded-4": {"per_device_train_batch_size": 4, "train_sampling_strategy": "group_by_length"},
    "padded-8": {"per_device_train_batch_size": 8, "train_sampling_strategy": "group_by_length"},
    "padded-2": {"per_device_train_batch_size": 2},
    "padded-1": {"per_device_train_batch_size": 1},
    "packed": {"packing": True, "max_length": MICRO_BATCH_TOKENS, "per_device_train_batch_size": 1},
}
"""Settings of TRL's SFTTrainer that are worth trying."""


@dataclass(frozen=True)
class Row:
    """One example; its last tokens, from `first_label` on, carry loss."""

    tokens: NDArray[np.int64]
    first_label: int


@dataclass(frozen=True)
class Workload:
    """How rows look, and how many make a step."""

    name: str
    lengths: tuple[int, int]
    label_share: float
    batch_size: int

    def rows(self, steps: int, vocabulary: int) -> list[Row]:
        """Rows for `steps` steps after the warm-up, equal in every contender."""
        generator = np.random.default_rng(7)
        count = (steps + WARM_UP_STEPS) * self.batch_size
        lengths = generator.integers(*self.lengths, size=count, endpoint=True)
        return [
            Row(generator.integers(10, vocabulary - 10, size=length), int(length - max(1, length * self.label_share)))
            for length in lengths
        ]


WORKLOADS = {
    "short": Workload("short", (150, 250), 0.3, 16),
    "long": Workload("long", (1024, 1024), 1.0, 4),
}


@dataclass(frozen=True)
class Options:
    """What a contender is asked to run."""

    model: Path
    workload: Workload
    precision: str
    steps: int
    variant: str
    processes: int


def options() -> Options:
    """The contender's command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), required=True)
    parser.add_argument("--precision", choices=["BF16", "FP32"], required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--variant", default="")
    parser.add_argument("--processes", type=int, default=1)
    parsed = parser.parse_args()
    workload = WORKLOADS[parsed.workload]
    return Options(parsed.model, workload, parsed.precision, parsed.steps, parsed.variant, parsed.processes)


def lora() -> Lora:
    """The adapter that every contender trains."""
    return Lora(rank=RANK, alpha=ALPHA)


def targets(model: Any) -> Targets:
    """The modules of TARGETS in a live model, as prepare resolves them from safetensors headers."""
    shapes = {
        name: tuple(module.weight.shape) for name, module in model.named_modules() if name.rpartition(".")[2] in TARGETS
    }
    return Targets(modules=list(shapes), parameters=[], shapes=shapes, ranks=dict.fromkeys(shapes, RANK))


def report(tokens: float, seconds: float, losses: Sequence[float], **more: object) -> None:
    """Print the measurement as one JSON line: processed tokens (padding not counted) per second."""
    result = {"tokensPerSecond": tokens / seconds, "losses": [round(loss, 4) for loss in losses], **more}
    sys.stdout.write("\nRESULT " + json.dumps(result) + "\n")
    sys.stdout.flush()
