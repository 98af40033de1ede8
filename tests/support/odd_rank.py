"""Ranks that behave oddly: one hangs in a step, one changes the base, one plans for a GPU; or steps are slow."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

STEP_S = "TINY_STEP_S"
"""Environment: how long each step takes at least, in seconds."""
SPOILT_STEP = 2


def hanging(step: int, *arguments: Any) -> None:
    """`tiny_rank.main` of a rank that waits, in Python, for an event that never comes, when it begins the step."""
    from support import tiny_rank

    before_each_step(lambda beginning, _: threading.Event().wait() if beginning == step else None)
    tiny_rank.main(*arguments)


def spoiling(parameter: str, *arguments: Any) -> None:
    """`tiny_rank.main` of a rank that changes one number of its shard of a frozen parameter, named by its end."""
    from support import tiny_rank

    def spoil(step: int, module: Any) -> None:
        if step == SPOILT_STEP:
            (found,) = (each for name, each in module.named_parameters() if name.endswith(parameter))
            found.ds_tensor.data.view(-1)[0] += 1

    before_each_step(spoil)
    tiny_rank.main(*arguments)


def planning(free_memory: int, *arguments: Any) -> None:
    """`tiny_rank.main` of a rank that plans as if it had a GPU with so many bytes free, and computes on the CPU."""
    from cloister_trainer.train import setup, worker
    from support import tiny_rank

    worker.plan_again = lambda context, inputs, state: setup.plan_for(context, inputs, state, free_memory)
    tiny_rank.main(*arguments)


def slow(step_s: float, *arguments: Any) -> None:
    """`tiny_rank.main` of a rank whose steps take so long at least."""
    from support import tiny_rank

    if step_s:
        before_each_step(lambda *_: time.sleep(step_s))
    tiny_rank.main(*arguments)


def slow_on_ray(config: dict[str, Any]) -> None:
    """`train_on_ray` of a rank whose steps take as long as the environment says."""
    from cloister_trainer.train.loop import train_on_ray

    before_each_step(lambda *_: time.sleep(float(os.environ[STEP_S])))
    train_on_ray(config)


def before_each_step(act: Callable[[int, Any], object]) -> None:
    """Have this process call `act` with a step's number and the module when it begins to compute the step."""
    from cloister_trainer.train import worker

    accumulate = worker.accumulate

    def oddly(context: Any, built: Any, batch: Any, watchdog: Any) -> Any:
        act(batch.step, built.module)
        return accumulate(context, built, batch, watchdog)

    worker.accumulate = oddly
