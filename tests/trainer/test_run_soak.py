"""Many kills at random moments: whatever was under way, the run ends with the same bits."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloister_api.events import Progress
from cloister_trainer.train.messages import Ended
from support.tiny_ranks import run_ranks
from support.tiny_run import make_run

STEPS = 80
KILLS = 6


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("precision", ["FP32", "BF16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_kills_at_random_moments_cost_not_a_bit(tmp_path: Path, seed: int, stage: int, precision: str) -> None:
    settings: dict[str, Any] = {
        "inputs": tmp_path / "inputs",
        "workers": 2,
        "steps": STEPS,
        "stage": stage,
        "validation": 8,
        "training": {"precision": precision},
        "checkpoint": {"interval": "0s"},
        "evaluation": {"everySteps": 7},
    }
    whole = make_run(tmp_path / "whole", **settings)
    assert run_ranks(whole, 2).end() == Ended("finished", STEPS)
    broken = make_run(tmp_path / "broken", **settings)
    rng = random.Random(f"{seed}/{stage}/{precision}")
    for attempt in range(1, KILLS + 1):
        made_in_this_start = rng.randrange(1, STEPS // KILLS)
        if run_ranks(broken, 2, after_steps(made_in_this_start, "kill"), attempt).ends:
            break
    run_ranks(broken, 2, attempt=KILLS + 1)
    assert broken.adapter() == whole.adapter()
    assert [row["step"] for row in broken.metrics()] == list(range(1, STEPS + 1))
    assert [row["loss"] for row in broken.metrics()] == [row["loss"] for row in whole.metrics()]
    assert broken.checks()["evaluations"] == whole.checks()["evaluations"]


def after_steps(count: int, what: str) -> Callable[[Any, Callable[[str], None]], None]:
    """Act when rank 0 has told of so many steps."""
    told: list[int] = []

    def watch(message: Any, act: Callable[[str], None]) -> None:
        if isinstance(message, Progress):
            told.append(message.step)
            if len(told) == count:
                act(what)

    return watch
