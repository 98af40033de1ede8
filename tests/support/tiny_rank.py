"""One rank of `tiny_run.run_ranks`, in a process of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cloister_api.errors import CloisterError
from cloister_api.run import Run
from cloister_trainer.records import PlanFile
from cloister_trainer.storage import open_storage
from cloister_trainer.train import engine, loss, setup
from cloister_trainer.train.context import WorkerContext
from cloister_trainer.train.engine import prepare_deepspeed
from cloister_trainer.train.engine_state import snapshot
from cloister_trainer.train.messages import Request
from cloister_trainer.train.worker import run_worker


@dataclass(frozen=True)
class Task:
    run: str
    plan: str
    scratch: str
    attempt: int
    rank: int
    world_size: int
    port: int
    as_if_large: bool = False
    """Every parameter is sharded at stage 3, and a chunk of the loss holds 16 label tokens."""
    told_steps: int = 0
    """Of how many first steps rank 0 tells what the optimizer was given."""
    device: str = "cpu"
    """The first GPU with "cuda": for one rank."""
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    """The test's own: a process from a forkserver has the one that its server began with."""


@dataclass(frozen=True)
class RankEnd:
    value: Any


@dataclass(frozen=True)
class StepTold:
    """A step just before the optimizer makes it: arrays by parameter name, as ZeRO puts them together."""

    step: int
    adapter: dict[str, NDArray[np.float32]]
    gradients: dict[str, NDArray[np.float32]]


class PipeSink:
    def __init__(self, pipe: Connection, request: Any) -> None:
        self._pipe, self._request, self._lock = pipe, request, threading.Lock()

    def push(self, message: Any) -> None:
        with self._lock:
            self._pipe.send(message)

    def request(self) -> Request:
        return Request(self._request.value)


def treat_as_large() -> None:
    """Have this process do to a tiny model what is done to a large one."""
    config = setup.deepspeed_config

    def sharding_everything(*arguments: Any, **named: Any) -> dict[str, Any]:
        found = config(*arguments, **named)
        found["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return found

    setup.deepspeed_config = sharding_everything
    loss._CHUNK_LOGITS["cpu"] = 1


def tell_steps(count: int, sink: PipeSink, rank: int) -> None:
    """Have this process's engine push a `StepTold` for each of the first `count` steps that it makes."""
    from deepspeed.utils import safe_get_full_grad

    class TellingEngine(engine.Engine):
        made = 0

        def step(self, learning_rate: float) -> torch.Tensor | float:
            self.made += 1
            if self.made <= count:
                adapter = {name: array(t) for name, t in snapshot(self, keep=rank == 0, moments=False).items()}
                gradients = {name: array(safe_get_full_grad(p)) for name, p in self.parameters.items()}
                if rank == 0:
                    sink.push(StepTold(self.made, adapter, gradients))
            return super().step(learning_rate)

    setup.Engine = TellingEngine  # type: ignore[misc]


def array(tensor: torch.Tensor) -> NDArray[np.float32]:
    return tensor.detach().float().numpy().copy()


def main(task: Task, pipe: Connection, request: Any) -> None:
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // task.world_size))
    os.environ.clear()
    os.environ.update(
        task.environment,
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(task.port),
        RANK=str(task.rank),
        WORLD_SIZE=str(task.world_size),
        LOCAL_RANK=str(task.rank),
    )
    device = torch.device("cuda:0" if task.device == "cuda" else "cpu")
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        rank=task.rank,
        world_size=task.world_size,
        timeout=timedelta(seconds=60),
        device_id=device if device.type == "cuda" else None,
    )
    if task.as_if_large:
        treat_as_large()
    run = Run.model_validate_json(task.run)
    sink = PipeSink(pipe, request)
    if task.told_steps:
        prepare_deepspeed(device)
        tell_steps(task.told_steps, sink, task.rank)
    context = WorkerContext(
        run=run,
        plan=PlanFile.model_validate_json(task.plan),
        attempt=task.attempt,
        rank=task.rank,
        world_size=task.world_size,
        node="localhost",
        device=device,
        storage=open_storage(run.settings.storage),
        sink=sink,
        scratch=Path(task.scratch),
        models=Path(task.scratch).parents[1] / "models",
    )
    try:
        end: Any = run_worker(context)
    except CloisterError as error:
        end = error
    sink.push(RankEnd(end))
    pipe.close()
