"""The driver's side of Ray: a cluster that is joined or started, and one start of the worker group in it."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_REPORT_URL", "http://127.0.0.1:9")  # that they are off is reported, too
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # else at 15, behind Ray's own daemons
# On CPUs each layer allocates and frees its activations. glibc is to give such memory to the next allocation of any
# thread: what goes back to the system comes again page by page and zeroed, a quarter of a step with two workers.
os.environ.setdefault("MALLOC_ARENA_MAX", "1")
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(32 * 2**20))
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**40))

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cloister_api.errors import CloisterError
from cloister_api.run import Run
from cloister_trainer.records import PlanFile
from cloister_trainer.train.event_sink import EventSink
from cloister_trainer.train.loop import EvictionCallback, node_address, train_on_ray
from cloister_trainer.train.messages import Message, Request
from cloister_trainer.train.places import give_back_places
from cloister_trainer.train.ray_errors import end_of_workers, lost_with_ray

log = logging.getLogger(__name__)
RAY_ADDRESS = "RAY_ADDRESS"
FOLDER_PREFIX = "cloister-ray-"
USERS_HOME = "CLOISTER_USERS_HOME"
UNSET = "-"
"""In USERS_HOME: the user has no HOME, which is not an empty one."""
logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)

START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
"""How long Ray Train looks for room for all ranks before it looks again, or gives up an elastic start."""
ELASTIC_START_TIMEOUT_S = 60
OBJECT_STORE_BYTES = 80 * 1024 * 1024
"""Nothing but control messages passes through Ray's object store; this is about the least that Ray accepts."""


@contextmanager
def ray_cluster(ranks: int, gpus: bool) -> Iterator[None]:
    """The cluster that RAY_ADDRESS names, or one on loopback that lives as long as this context.

    Must be entered on the main thread: what is started dies with the thread that started it (PR_SET_PDEATHSIG), so
    that nothing computes on when this process is killed (two of Ray's agents wait a minute for their control store
    before they end). What is started asks for a token that only this process and its children know.
    """
    if os.environ.get(RAY_ADDRESS):
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
        try:
            yield
        finally:
            ray.shutdown()
        return
    _remove_left_folders()
    temporary = tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        with _home_without_a_cloud(Path(temporary)):
            ray.init(
                num_cpus=ranks,
                num_gpus=None if gpus else 0,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                _temp_dir=temporary,
            )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)


def own_address() -> str:
    """This process's node, by the address that Ray has for it."""
    return str(ray.util.get_node_ip_address())


@contextmanager
def _home_without_a_cloud(folder: Path) -> Iterator[None]:
    """HOME is `folder` for what Ray starts meanwhile; ranks get the user's back (`_set_master`).

    Even with usage statistics off Ray asks cloud metadata servers, 169.254.169.254 and metadata.google.internal, whose
    machine this is, unless it finds this file in its HOME (ray._common.usage.usage_lib.get_cluster_config_to_report).
    """
    (folder / "ray_bootstrap_config.yaml").write_text("{}\n")
    before = os.environ.get("HOME")
    os.environ.update({"HOME": str(folder), USERS_HOME: UNSET if before is None else before})
    try:
        yield
    finally:
        _users_home_again()


def _remove_left_folders() -> None:
    """Ray's temporary folders of processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*-*"):
        owner = folder.name.removeprefix(FOLDER_PREFIX).partition("-")[0]
        if owner.isdecimal() and not Path("/proc", owner).exists():
            shutil.rmtree(folder, ignore_errors=True)


class Rendezvous(Backend):  # type: ignore[misc]  # Ray ships no types
    """Tells the ranks where rank 0 listens. They make the process group themselves: only they need torch."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:  # noqa: ARG002
        """Called in Ray Train's controller before the worker function starts."""
        address, port = worker_group.execute_single(0, _free_address)
        worker_group.execute(_set_master, address, port)


class RendezvousConfig(BackendConfig):  # type: ignore[misc]
    """Names the backend."""

    @property
    def backend_cls(self) -> type[Backend]:
        """The class that Ray Train makes in its controller."""
        return Rendezvous


class FixedSize(FixedScalingPolicy):  # type: ignore[misc]
    """A group of one size in a cluster of one size: no autoscaler is asked, for which Ray would start an actor."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ask for nothing."""

    def _maybe_send_resource_request(self) -> None:
        """Ask for nothing."""


class Trainer(DataParallelTrainer):  # type: ignore[misc]
    """Ray Train's TorchTrainer without the parts that import torch into the driver and the controller."""

    def _create_default_callbacks(self) -> list[Any]:
        """All but the one that starts an actor for Ray datasets, which are not used."""
        return [part for part in super()._create_default_callbacks() if not isinstance(part, DatasetsCallback)]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        return super()._initialize_and_run_controller(**{**parts, "scaling_policy": FixedSize(self.scaling_config)})


def _free_address() -> tuple[str, int]:
    address = node_address()
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind((address, 0))
        return address, probe.getsockname()[1]


def _set_master(address: str, port: int) -> None:
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    _users_home_again()  # where compiled kernels are kept between runs


def _users_home_again() -> None:
    home = os.environ.pop(USERS_HOME, None)
    if home == UNSET:
        os.environ.pop("HOME", None)
    elif home is not None:
        os.environ["HOME"] = home


@dataclass(frozen=True)
class Start:
    """One start of the worker group."""

    run: Run
    plan: PlanFile
    attempt: int
    ordinal: int
    """From 1 within this process."""
    ranks: int
    elastic: bool
    """The next start may be smaller, so that this one does not wait for workers that go before they begin."""
    egress: dict[str, Any]
    """The driver's own egress proof."""
    scratch: Path
    models: Path

    @property
    def name(self) -> str:
        """Ray Train's run name. Never used twice: Ray would go on from what it kept under the name."""
        return f"{self.run.uid}-{self.attempt}-{time.time_ns()}-{self.ordinal}"


class WorkerGroup:
    """A running start. `fit` waits in a thread, so that the caller's thread is free for messages and signals."""

    def __init__(self, start: Start) -> None:
        # Ray puts an actor that takes no CPU on any node; a worker that goes is not to take this one along.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._sink = ray.remote(num_cpus=0, scheduling_strategy=here)(EventSink).remote()
        self._error: BaseException | None = None
        gpus = start.run.spec.distribution.gpus_per_worker > 0
        if start.elastic:
            os.environ[START_TIMEOUT] = str(ELASTIC_START_TIMEOUT_S)
        self._trainer = Trainer(
            train_on_ray,
            train_loop_config={
                "actor": self._sink,
                "run": start.run.model_dump_json(),
                "plan": start.plan.model_dump_json(),
                "attempt": start.attempt,
                "egress": start.egress,
                "scratch": str(start.scratch),
                "models": str(start.models),
                "collective_timeout_s": start.run.spec.progress_deadline_seconds + 60,
            },
            backend_config=RendezvousConfig(),
            scaling_config=ScalingConfig(
                num_workers=start.ranks,
                use_gpu=gpus,
                resources_per_worker={"CPU": 1, **({"GPU": 1} if gpus else {})},
                placement_strategy="PACK" if gpus else "SPREAD",
            ),
            run_config=RunConfig(
                name=start.name,
                storage_path=str(start.scratch / "ray"),
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0 if start.elastic else -1),
                callbacks=[EvictionCallback()],
            ),
        )
        self._thread = threading.Thread(target=self._fit, name="fit", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` seconds for the end; tells whether it came."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def drain(self) -> tuple[list[Message], float]:
        """Messages since the last call, and how long the quietest rank has not been heard, in seconds."""
        with lost_with_ray():
            messages, quiet_s = ray.get(self._sink.drain.remote())
        return messages, quiet_s

    def ask(self, request: Request) -> None:
        """Ask all ranks."""
        with lost_with_ray():
            ray.get(self._sink.ask.remote(int(request)))

    def failure(self) -> CloisterError | None:
        """What Ray says of the end, if it says anything."""
        return None if self._error is None else end_of_workers(self._error)

    def close(self) -> None:
        """End the event actor, and with it the ranks that are left."""
        with suppress(ray.exceptions.RayError):
            ray.kill(self._sink)
            lost_its_controller = isinstance(self._error, ray.exceptions.RayActorError)
            if lost_its_controller and not os.environ.get(RAY_ADDRESS):
                give_back_places()

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:  # noqa: BLE001  (whatever Ray raises, the group has ended)
            self._error = error
            log.info("Ray Train ended: %s", error)
