"""Ranks that train a tiny run without Ray, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import wait
from typing import Any

from cloister_api.errors import CloisterError
from support.tiny_run import TinyRun

_PRELOADED = ["deepspeed", "peft", "transformers.models.llama.modeling_llama", "cloister_trainer.train.worker"]


@dataclass
class Ranks:
    """What a group of ranks left: rank 0's messages, and each rank's end or failure."""

    messages: list[Any] = field(default_factory=list)
    ends: dict[int, Any] = field(default_factory=dict)

    def of(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.messages if isinstance(message, kind)]

    def end(self) -> Any:
        """Rank 0's end; raises a rank's failure."""
        for end in self.ends.values():
            if isinstance(end, CloisterError):
                raise end
        return self.ends[0]


def run_ranks(
    tiny: TinyRun,
    world_size: int = 1,
    watch: Callable[[Any, Callable[[str], None]], None] = lambda message, act: None,
    attempt: int = 1,
    as_if_large: bool = False,
    told_steps: int = 0,
    hangs_at: int | None = None,
    spoils: str | None = None,
    step_s: float = 0,
    free_memory: int | None = None,
    device: str = "cpu",
) -> Ranks:
    """Run the worker function in `world_size` processes joined by gloo, and wait for their ends.

    With `device` "cuda" it is one process on the first GPU, with NCCL.

    `watch` sees each of rank 0's messages; its second argument acts: `stop` asks for a checkpoint and an end, `abort`
    for stacks and an end, `kill` ends all ranks with SIGKILL, `freeze` stops the last one with SIGSTOP. When a rank
    ends by itself without a result, the others are killed, as Ray would do. Of the first `told_steps` steps rank 0's
    messages hold a `tiny_rank.StepTold`. In step `hangs_at` the last rank waits for ever, in Python. The last
    rank changes its shard of the frozen parameter whose name ends as `spoils` says. Each step takes `step_s` seconds at
    least. With `free_memory` a start plans as on GPUs with so many bytes free.
    """
    from support import odd_rank, tiny_rank

    os.environ["DS_ACCELERATOR"] = device
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    context = multiprocessing.get_context("forkserver" if device == "cpu" else "spawn")
    if device == "cpu":
        context.set_forkserver_preload(_PRELOADED)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found, request = Ranks(), context.Value("i", 0)
    pipes, processes = [], []
    for rank in range(world_size):
        mine, theirs = context.Pipe(duplex=False)
        task = tiny_rank.Task(
            tiny.run.model_dump_json(),
            tiny.plan.model_dump_json(),
            str(tiny.scratch),
            attempt,
            rank,
            world_size,
            port,
            as_if_large,
            told_steps,
            device,
        )
        main = partial(odd_rank.slow, step_s)
        if rank == world_size - 1 and hangs_at is not None:
            main = partial(odd_rank.hanging, hangs_at)
        elif rank == world_size - 1 and spoils is not None:
            main = partial(odd_rank.spoiling, spoils)
        elif free_memory is not None:
            main = partial(odd_rank.planning, free_memory)
        process = context.Process(target=main, args=(task, theirs, request), daemon=True)
        process.start()
        theirs.close()
        pipes.append(mine)
        processes.append(process)

    def act(what: str) -> None:
        if what in {"stop", "abort"}:
            request.value = {"stop": 1, "abort": 2}[what]
        elif what == "kill":
            for process in processes:
                process.kill()
        else:
            os.kill(processes[-1].pid or 0, signal.SIGSTOP)

    def listen(rank: int) -> None:
        while True:
            try:
                message = pipes[rank].recv()
            except EOFError:
                return
            if isinstance(message, tiny_rank.RankEnd):
                found.ends[rank] = message.value
            elif rank == 0:
                found.messages.append(message)
                watch(message, act)

    listeners = [threading.Thread(target=listen, args=(rank,)) for rank in range(world_size)]
    try:
        for listener in listeners:
            listener.start()
        running = list(processes)
        while running:
            ended = wait([process.sentinel for process in running])
            for process in [process for process in running if process.sentinel in ended]:
                process.join()
                running.remove(process)
                if process.exitcode != 0:
                    for other in running:
                        other.kill()
        for listener in listeners:
            listener.join()
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
    return found
