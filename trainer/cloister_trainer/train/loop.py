"""The worker function that Ray Train calls: who this rank is, its line to the driver, then `run_worker`."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.train.v2._internal.execution.callback import WorkerCallback

from cloister_api.run import Run
from cloister_api.spec_training import Quantization
from cloister_trainer.cpus import usable_cpus
from cloister_trainer.records import PlanFile
from cloister_trainer.train.messages import Message, Request

EXCHANGE_INTERVAL_S = 0.5
_evicted = threading.Event()


class EvictionCallback(WorkerCallback):  # type: ignore[misc]  # Ray ships no types
    """Turns SIGTERM into a wish for a checkpoint. Ray calls it on the process's main thread, where signals are set."""

    def after_init_train_context(self) -> None:
        """Set the handler in place of Ray's, which would end the process."""
        signal.signal(signal.SIGTERM, lambda _number, _frame: _evicted.set())


class RaySink:
    """A rank's line to the driver: a thread hands messages to the event actor and brings back the driver's request."""

    def __init__(self, actor: ActorHandle[Any], rank: int) -> None:
        self._actor, self._rank = actor, rank
        self._queue: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._request = Request.NONE
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._exchange_until_closed, name="sink", daemon=True)
        self._thread.start()

    def push(self, message: Message) -> None:
        """Hand over a message without waiting."""
        self._queue.put(message)

    def request(self) -> Request:
        """The driver's newest request."""
        return self._request

    def close(self) -> None:
        """Hand over what is left."""
        self._closed.set()
        self._thread.join()
        self._actor.leave.remote(self._rank)

    def _exchange_until_closed(self) -> None:
        while not self._closed.wait(EXCHANGE_INTERVAL_S):
            self._exchange()
        self._exchange()

    def _exchange(self) -> None:
        messages: list[Message] = []
        while not self._queue.empty():
            messages.append(self._queue.get())
        try:
            self._request = Request(ray.get(self._actor.exchange.remote(self._rank, messages)))
        except RayError:
            self._request = Request.ABORT  # the actor ends with the driver: nobody waits for this rank any more


def node_address() -> str:
    """The address under which Ray knows this node: loopback on a cluster that the driver started."""
    node_id = ray.get_runtime_context().get_node_id()
    address: str = next(node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == node_id)
    return address


def train_on_ray(config: dict[str, Any]) -> None:
    """Ray Train's worker function. `config` holds the actor, run and plan as JSON, attempt, scratch and models."""
    rank_info = ray.train.get_context()
    rank, world_size = rank_info.get_world_rank(), rank_info.get_world_size()
    local_world_size = rank_info.get_local_world_size()
    sink = RaySink(config["actor"], rank)
    try:
        _join_and_run(config, sink, rank, world_size, rank_info.get_local_rank(), local_world_size)
    finally:
        sink.close()


def _join_and_run(
    config: dict[str, Any], sink: RaySink, rank: int, world_size: int, local_rank: int, local_world_size: int
) -> None:
    run = Run.model_validate_json(config["run"])
    threads = max(1, usable_cpus() // local_world_size)
    os.environ.update(
        OMP_NUM_THREADS=str(threads),
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(local_rank),
        LOCAL_WORLD_SIZE=str(local_world_size),
    )
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        # Packed lengths differ from micro-batch to micro-batch; fixed segments would hold twice what is in use.
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if run.spec.lora.quantization is Quantization.NONE:
        # PEFT imports bitsandbytes wherever it is, and with it torch's compiler: a third of all that a rank imports.
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    import torch

    from cloister_trainer.storage import open_storage
    from cloister_trainer.train.context import WorkerContext
    from cloister_trainer.train.worker import run_worker

    gpus = run.spec.distribution.gpus_per_worker > 0
    if gpus:
        from ray.train.torch import get_device

        device = get_device()
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        torch.set_num_threads(threads)
    torch.distributed.init_process_group(
        "nccl" if gpus else "gloo",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=config["collective_timeout_s"]),
        device_id=device if gpus else None,
    )
    ended = run_worker(
        WorkerContext(
            run=run,
            plan=PlanFile.model_validate_json(config["plan"]),
            attempt=config["attempt"],
            rank=rank,
            world_size=world_size,
            node=node_address(),
            device=device,
            storage=open_storage(run.settings.storage),
            sink=sink,
            scratch=Path(config["scratch"]),
            models=Path(config["models"]),
            evicted=_evicted.is_set,
            driver_egress=config["egress"],
        )
    )
    if rank == 0:
        sink.push(ended)
