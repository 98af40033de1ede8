"""Learning rates by table."""

from __future__ import annotations

import math

import pytest

from cloister_api.spec_training import Scheduler, Training
from cloister_trainer.train.schedule import learning_rate, warmup_steps


def rates(total: int, **settings: object) -> list[float]:
    training = Training(learning_rate=1.0, **settings)
    return [round(learning_rate(step, total, training), 6) for step in range(1, total + 1)]


def test_constant_after_warmup() -> None:
    assert rates(6, scheduler=Scheduler.CONSTANT, warmup_ratio=0.5) == [0.333333, 0.666667, 1, 1, 1, 1]


def test_linear_falls_to_the_floor() -> None:
    assert rates(5, scheduler=Scheduler.LINEAR, warmup_ratio=0.2, min_learning_rate_ratio=0.2) == [
        1,
        0.8,
        0.6,
        0.4,
        0.2,
    ]


def test_cosine_is_half_way_down_in_the_middle() -> None:
    assert rates(5, warmup_ratio=0.2, min_learning_rate_ratio=0.0) == [
        1,
        round((1 + math.cos(math.pi / 4)) / 2, 6),
        0.5,
        round((1 - math.cos(math.pi / 4)) / 2, 6),
        0,
    ]


@pytest.mark.parametrize("scheduler", list(Scheduler))
@pytest.mark.parametrize("total", [1, 2, 3, 100])
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.03, 1.0])
def test_no_step_is_without_a_rate_or_above_the_peak(scheduler: Scheduler, total: int, warmup_ratio: float) -> None:
    found = rates(total, scheduler=scheduler, warmup_ratio=warmup_ratio)
    assert all(0 < rate <= 1 for rate in found)
    assert found == sorted(found) if warmup_ratio == 1.0 else True


def test_a_warmup_is_not_longer_by_a_rounding_error() -> None:
    assert warmup_steps(100, Training(warmup_ratio=0.07)) == 7
