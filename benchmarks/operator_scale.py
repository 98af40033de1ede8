"""The operator with thousands of jobs on a real API server: how soon it acts, how much it takes.

    PYTHONPATH=tests python -m benchmarks.operator_scale [--jobs 1000] [--training 100] [--idle 5000]

etcd, kube-apiserver, controller manager, scheduler, KubeRay and kwok are started on this machine; kubelets and Ray
dashboards are played as in tests/cluster. The operator is a process of its own with the rights that it ships. All
of it, this program too, shares the machine's cores, so the seconds are those of a small cluster that is short of CPU.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.operator_meter import Meter, Reading
from benchmarks.operator_world import Key, Onlooker, PacedKubelet, Trainers
from cluster.control_plane.install import apply_crd
from cluster.control_plane.kuberay import install_kuberay, start_kuberay
from cluster.control_plane.kwok import create_node, start_kwok
from cluster.control_plane.plane import ControlPlane
from cluster.edges.dashboard import RayDashboard
from cluster.edges.pod_status import Ended
from cluster.jobs import create_job, jobs_path
from cluster.operator_process import operator
from support.seaweedfs import free_ports

NAMESPACES = 10
CLIENTS = 8
STEP_SECONDS = 10.0
"""How long the pods of prepare and publish run."""
QUIET_SECONDS = 10.0
TRAINING_SECONDS = 60.0
JOBS_A_SECOND = 10
TIMEOUT_SECONDS = 600.0
NODES = 4
NODE = {"cpu": "4096", "memory": "64Ti", "ephemeral-storage": "1Pi", "pods": "20000", "nvidia.com/gpu": "512"}

Row = tuple[str, str, str]


class Stage:
    """The cluster with the operator, and what was applied to it."""

    def __init__(self, stack: ExitStack, folder: Path | None, progress: Progress) -> None:
        self.progress = progress
        self.plane = stack.enter_context(ControlPlane(folder))
        apply_crd(self.plane)
        install_kuberay(self.plane)
        (port,) = free_ports(1)
        start_kuberay(self.plane, port)
        self.dashboard = stack.enter_context(RayDashboard(port))
        self.kubelet = stack.enter_context(PacedKubelet(self.plane, STEP_SECONDS))
        start_kwok(self.plane, self.kubelet.port)
        for number in range(NODES):
            create_node(self.plane, f"node-{number}", NODE)
        self.namespaces = [self.plane.create_namespace() for _ in range(NAMESPACES)]
        self.seen = stack.enter_context(Onlooker(self.plane))
        self.uids: dict[Key, str] = {}
        self.applied: dict[Key, float] = {}
        self.operator = operator(self.plane, self.plane.create_namespace(), self.plane.logs)
        self.operator.command.remove("--verbose")
        stack.callback(self.operator.kill)
        self.meter = Meter(self.operator)

    def apply(self, key: Key, *, held: bool) -> None:
        """Apply a job; `held`: it stops once it is prepared."""
        namespace, name = key
        changes = {"metadata.name": name, "spec.output.uri": f"s3://adapters/{namespace}/{name}"}
        self.applied[key] = time.monotonic()
        made = create_job(self.plane, namespace, changes | ({"spec.hold": "BeforeTraining"} if held else {}))
        self.uids[key] = made["metadata"]["uid"]

    def keys(self, name: str, count: int) -> list[Key]:
        """Names of new jobs, spread over the namespaces."""
        return [(self.namespaces[number % NAMESPACES], f"{name}-{number:04}") for number in range(count)]

    def each(self, what: str, keys: Sequence[Key], do: Callable[[Key], None]) -> None:
        """Do something for every job, several at a time."""
        pool = ThreadPoolExecutor(CLIENTS)
        try:
            for _ in self.progress.track(pool.map(do, keys), total=len(keys), description=what):
                pass
        finally:
            pool.shutdown(cancel_futures=True)

    def wait(self, what: str, count: Callable[[], int], total: int) -> float:
        """Wait until so many are counted; the seconds that took. TimeoutError, RuntimeError when the operator ended."""
        begun, shown = time.monotonic(), self.progress.add_task(what, total=total)
        while (counted := count()) < total:
            self.progress.update(shown, completed=counted)
            if not self.operator.running:
                raise RuntimeError(f"The operator ended:\n{self.operator.log_end()}")
            if time.monotonic() - begun > TIMEOUT_SECONDS:
                raise TimeoutError(f"{what}: {counted} of {total} after {TIMEOUT_SECONDS:.0f} s")
            time.sleep(0.1)
        self.progress.update(shown, completed=total)
        return time.monotonic() - begun

    def wait_for_phase(self, phase: str, keys: Sequence[Key]) -> float:
        """Wait until all these jobs are in a phase."""
        return self.wait(phase, lambda: sum(self.seen.phases.get(key) == phase for key in keys), len(keys))

    def rest(self, what: str, seconds: float) -> None:
        """Let time pass."""
        begun = time.monotonic()
        self.wait(what, lambda: min(int(seconds), int(time.monotonic() - begun)), int(seconds))

    def read(self) -> Reading:
        """What the operator took until now."""
        reading = self.meter.read()
        if reading is None:
            raise RuntimeError(f"The operator shows no metrics:\n{self.operator.log_end()}")
        return reading

    def seconds_to_first_child(self, keys: Sequence[Key]) -> list[float]:
        """From sending a job to the sight of its Job, sorted."""
        return sorted(self.seen.first_child[key] - self.applied[key] for key in keys)

    def restart(self, jobs: int) -> float:
        """Kill the operator, start it, and wait until it has looked at every job."""
        self.operator.kill()
        begun = time.monotonic()
        self.operator.start()
        self.wait(f"a new operator looks at {jobs} jobs", lambda: int(self.meter.has_looked_at(jobs)), 1)
        return time.monotonic() - begun


def measure(stage: Stage, jobs: int, training: int, trickle: int, idle: int) -> Iterator[Row]:
    """All figures, each as soon as it is there."""
    yield from alone(stage)
    runs = stage.keys("run", training)
    with Trainers(stage.kubelet, stage.uids):
        yield from trained(stage, runs)
        yield from burst(stage, stage.keys("burst", jobs))
        yield from steady(stage, stage.keys("steady", trickle), f"{jobs} jobs held, {training} training")
        yield "most memory until here", f"{stage.meter.highest_mb():.0f} MB", ""
        present = jobs + training + trickle
        yield f"cold start until {present} jobs were looked at", f"{stage.restart(present):.1f} s", "30 s for 1,000"
        yield "memory after that", f"{stage.meter.resident_mb():.0f} MB", ""
    yield from published(stage, runs)
    if idle:
        yield from finished(stage, idle, present, runs[0])


def alone(stage: Stage) -> Iterator[Row]:
    """The operator without a job."""
    begun = time.monotonic()
    stage.operator.start()
    stage.wait("the operator starts", lambda: int(stage.meter.read() is not None), 1)
    yield "start without jobs", f"{time.monotonic() - begun:.1f} s", ""
    stage.rest("nothing to do", QUIET_SECONDS)
    before = stage.read()
    stage.rest("nothing to do", QUIET_SECONDS)
    spent = stage.read().since(before)
    yield "memory without jobs", f"{stage.meter.resident_mb():.0f} MB", "under 150 MB"
    yield "CPU without jobs", f"{100 * spent.cpu_seconds / QUIET_SECONDS:.1f} % of a core", ""


def trained(stage: Stage, runs: Sequence[Key]) -> Iterator[Row]:
    """Jobs from apply to training, then a while of nothing but training."""
    for namespace, name in runs:
        stage.dashboard.tell(namespace, f"{name}-1", "RUNNING")
    before = stage.read()
    stage.each("apply the jobs that train", runs, lambda key: stage.apply(key, held=False))
    stage.wait_for_phase("Training", runs)
    after = stage.read()
    yield "one job, from apply to training", cost(after.since(before), len(runs)), ""
    stage.rest("training", TRAINING_SECONDS)
    minutes = len(runs) * TRAINING_SECONDS / 60
    yield "one job, a minute of training", cost(stage.read().since(after), minutes), ""


def burst(stage: Stage, keys: Sequence[Key]) -> Iterator[Row]:
    """All jobs at once."""
    before, begun = stage.read(), time.monotonic()
    stage.each(f"apply {len(keys)} jobs", keys, lambda key: stage.apply(key, held=True))
    sent = time.monotonic() - begun
    stage.wait("first children", lambda: sum(key in stage.seen.first_child for key in keys), len(keys))
    last = max(stage.seen.first_child[key] for key in keys) - begun
    yield f"{len(keys)} jobs applied within {sent:.0f} s, until each has a child", f"{last:.1f} s", "60 s"
    yield "of those, apply → first child", latencies(stage.seconds_to_first_child(keys)), ""
    stage.wait_for_phase("Held", keys)
    yield "one job, from apply to prepared and held", cost(stage.read().since(before), len(keys)), ""


def steady(stage: Stage, keys: Sequence[Key], meanwhile: str) -> Iterator[Row]:
    """Jobs one after another, in a cluster that has its load."""
    begun = time.monotonic()

    def apply_in_time() -> int:
        due = min(len(keys), int((time.monotonic() - begun) * JOBS_A_SECOND) + 1)
        for key in keys[:due]:
            if key not in stage.applied:
                stage.apply(key, held=True)
        return due

    stage.wait(f"{JOBS_A_SECOND} jobs a second", apply_in_time, len(keys))
    stage.wait("first children", lambda: sum(key in stage.seen.first_child for key in keys), len(keys))
    found = latencies(stage.seconds_to_first_child(keys))
    yield f"{JOBS_A_SECOND} jobs a second, {meanwhile}: apply → first child", found, "p95 under 2 s"
    stage.wait_for_phase("Held", keys)


def published(stage: Stage, runs: Sequence[Key]) -> Iterator[Row]:
    """The runs end, and their adapters are published."""
    before = stage.read()
    for namespace, name in runs:
        stage.dashboard.tell(namespace, f"{name}-1", "SUCCEEDED")
    for namespace in stage.namespaces:
        stage.kubelet.order(Ended(0), namespace, role="submitter")
    stage.wait_for_phase("Complete", runs)
    yield "one job, from the end of training to published", cost(stage.read().since(before), len(runs)), ""


def finished(stage: Stage, idle: int, present: int, example: Key) -> Iterator[Row]:
    """The same with thousands of jobs that ended long ago; they are written while no operator runs."""
    stage.operator.stop()
    status = stage.plane.api.get(jobs_path(*example))["status"]

    def write(key: Key) -> None:
        stage.apply(key, held=False)
        stage.plane.api.patch(f"{jobs_path(*key)}/status", {"status": status})

    stage.each(f"write {idle} finished jobs", stage.keys("done", idle), write)
    jobs = idle + present
    yield f"cold start until {jobs} jobs ({idle} finished) were looked at", f"{stage.restart(jobs):.1f} s", ""
    stage.rest("nothing to do", QUIET_SECONDS)
    before = stage.read()
    stage.rest("nothing to do", QUIET_SECONDS)
    spent = stage.read().since(before)
    yield f"memory with {jobs} jobs", f"{stage.meter.resident_mb():.0f} MB", ""
    yield f"CPU with {jobs} jobs", f"{100 * spent.cpu_seconds / QUIET_SECONDS:.1f} % of a core", ""
    yield from steady(stage, stage.keys("late", 10 * JOBS_A_SECOND), f"{jobs} jobs")


def cost(spent: Reading, jobs: float) -> str:
    """CPU time, calls and passes for each job."""
    most = ", ".join(f"{call} {count / jobs:.1f}" for call, count in spent.calls.most_common(5))
    calls = f"{sum(spent.calls.values()) / jobs:.1f} API calls ({most})"
    passes = f"{spent.looks / jobs:.1f} passes, {spent.failed / jobs:.2f} of them again"
    return f"{1000 * spent.cpu_seconds / jobs:.0f} ms CPU, {calls}, {passes}"


def latencies(seconds: Sequence[float]) -> str:
    """Median, 95th percentile and maximum of sorted values."""
    p50, p95 = (seconds[min(len(seconds) - 1, int(len(seconds) * share))] for share in (0.5, 0.95))
    return f"p50 {p50:.2f} s, p95 {p95:.2f} s, max {seconds[-1]:.2f} s"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print one table; what was measured before a failure is printed too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000, help="jobs that are applied at once")
    parser.add_argument("--training", type=int, default=100, help="jobs that train meanwhile")
    parser.add_argument("--trickle", type=int, default=300, help="jobs that are applied one after another")
    parser.add_argument("--idle", type=int, default=5000, help="finished jobs; 0 leaves that part out")
    parser.add_argument("--folder", type=Path, help="where the programs' logs stay")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    table = Table("what", "measured", "goal", title="The operator at scale")
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    try:
        with ExitStack() as stack:
            progress = stack.enter_context(Progress(*columns, console=console))
            stage = Stage(stack, options.folder, progress)
            for row in measure(stage, options.jobs, options.training, options.trickle, options.idle):
                progress.console.print(*row[:2], sep=": ", highlight=False)
                table.add_row(*row)
    finally:
        Console(width=150).print(table)


if __name__ == "__main__":
    main()
