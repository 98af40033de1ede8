"""The learning rate of each step."""

from __future__ import annotations

import math

from cloister_api.spec_training import Scheduler, Training


def warmup_steps(total_steps: int, training: Training) -> int:
    """Steps over which the learning rate rises."""
    return math.ceil(round(training.warmup_ratio * total_steps, 6))  # 0.07 * 100 is a little more than 7


def learning_rate(step: int, total_steps: int, training: Training) -> float:
    """The learning rate of `step`, from 1 to `total_steps`.

    It rises linearly over the warm-up and reaches its peak at the warm-up's last step; then it follows the scheduler
    and reaches its floor, the peak times minLearningRateRatio, at the last step (cosine: Loshchilov and Hutter 2017).
    """
    warmup = warmup_steps(total_steps, training)
    if step <= warmup:
        return training.learning_rate * step / warmup
    done = (step - warmup) / max(1, total_steps - warmup)
    return training.learning_rate * _shape(training, done)


def _shape(training: Training, done: float) -> float:
    """The fraction of the peak when the fraction `done` of the steps after warm-up is made."""
    floor = training.min_learning_rate_ratio
    match training.scheduler:
        case Scheduler.CONSTANT:
            return 1.0
        case Scheduler.LINEAR:
            return 1.0 - (1.0 - floor) * done
        case Scheduler.COSINE:
            return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * done))
