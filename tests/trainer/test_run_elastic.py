"""distribution.minWorkers: a run that loses a worker goes on with those that are left, and grows when it is back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cloister_api.events import CheckpointSaved, Done, Event, Progress, Restarted
from cloister_operator.render.ray_job import CPU_WORKER_ENVIRONMENT, WORKER_ENVIRONMENT
from cloister_trainer.train import elastic
from cloister_trainer.train.elastic import GROW_AFTER_S, LOOK_INTERVAL_S, WORKERS_PATIENCE_S, Presence, Workers
from support.driver_in_pod import driver_in
from support.odd_rank import STEP_S
from support.pods import SECOND_WORKER_ADDRESS, RayPods, require_namespaces, wait_until
from support.tiny_ranks import run_ranks
from support.tiny_run import make_run

STEPS = 24
CURVE = 1e-5
"""Of float32 on any number of workers (docs/exactness.md)."""
SETTINGS: dict[str, Any] = {
    "steps": STEPS,
    "train": 64,
    "training": {"globalBatchSize": 16},
    "checkpoint": {"interval": "0s"},
    "distribution": {"workers": 2, "minWorkers": 1, "gpusPerWorker": 0, "zeroStage": 2},
}


NO_ROOM = """
import sys
from pathlib import Path
from cloister_trainer.train import launch
from support.tiny_run import make_run
launch.ELASTIC_START_TIMEOUT_S = 1
folder = Path(sys.argv[1])
tiny = make_run(folder)
with launch.ray_cluster(1, gpus=False):
    group = launch.WorkerGroup(launch.Start(tiny.run, tiny.plan, 1, 1, 2, True, {}, tiny.scratch, folder))
    assert group.wait(120), "it still waits"
    print(group.failure())
    group.close()
"""


class Cluster:
    """Workers that come and go at fixed times. Time passes only while somebody waits, or is told to."""

    def __init__(self, present: dict[float, int]) -> None:
        self._present = present
        """The count from each moment on."""
        self.silent = 0
        """Of these workers, that Ray holds to be alive, so many do not answer."""
        self.now = 0.0
        self.said: list[str] = []

    def monotonic(self) -> float:
        return self.now

    def workers(self, wanted: int, fewest: int) -> Workers:
        return Workers(wanted, fewest, Presence(self.count, self.answering, self.pause, self.said.append))

    def count(self) -> int:
        return self._present[max(moment for moment in self._present if moment <= self.now)]

    def answering(self) -> int:
        return self.count() - self.silent

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def grows_at(self, workers: Workers) -> float:
        while not workers.may_grow():
            self.now += 1
        return self.now


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[float, int]], Cluster]:
    """A cluster whose clock everybody reads."""

    def make(present: dict[float, int]) -> Cluster:
        cluster = Cluster(present)
        monkeypatch.setattr(elastic, "time", cluster)
        return cluster

    return make


def test_without_min_workers_nobody_is_counted(at: Callable[[dict[float, int]], Cluster]) -> None:
    cluster = at({})
    workers = cluster.workers(4, 4)
    assert (workers.for_next_start(), workers.elastic) == (4, False)
    cluster.now = 1e6
    assert not workers.may_grow()


def test_all_workers_begin_at_once(at: Callable[[dict[float, int]], Cluster]) -> None:
    cluster = at({0: 9})
    assert (cluster.workers(4, 2).for_next_start(), cluster.now, cluster.said) == (4, 0, [])


def test_a_worker_that_comes_back_soon_is_waited_for(at: Callable[[dict[float, int]], Cluster]) -> None:
    cluster = at({0: 3, 60: 4})
    assert (cluster.workers(4, 2).for_next_start(), cluster.now) == (4, 60)
    assert cluster.said == ["3 of 4 workers are there: waiting for the others, at most 120 s after the last change."]


def test_others_are_waited_for_while_workers_come_or_go(at: Callable[[dict[float, int]], Cluster]) -> None:
    cluster = at({0: 1, 100: 2, 200: 3})
    assert (cluster.workers(4, 2).for_next_start(), cluster.now) == (3, 200 + WORKERS_PATIENCE_S)
    assert cluster.said[-1] == "Training goes on with 3 of 4 workers."


def test_min_workers_are_waited_for_as_long_as_it_takes(at: Callable[[dict[float, int]], Cluster]) -> None:
    cluster = at({0: 1, 5000: 2})
    assert (cluster.workers(4, 2).for_next_start(), cluster.now) == (2, 5000 + WORKERS_PATIENCE_S)
    assert cluster.said[0] == "1 of 4 workers are there: waiting for 2 at least."


def test_a_worker_that_goes_and_still_answers_is_not_counted(at: Callable[[dict[float, int]], Cluster]) -> None:
    cluster = at({0: 2, 1003: 1})
    workers = cluster.workers(2, 1)
    assert workers.for_next_start() == 2
    cluster.now = 1000
    assert (workers.for_next_start(), cluster.now) == (1, 1000 + LOOK_INTERVAL_S + WORKERS_PATIENCE_S)


def test_a_start_ends_for_workers_that_have_been_back_for_a_while(at: Callable[[dict[float, int]], Cluster]) -> None:
    """One that goes again in the meantime begins anew; one that stays away does not hold the others up."""
    cluster = at({0: 2, 200: 3, 400: 2, 600: 3})
    workers = cluster.workers(4, 1)
    assert workers.for_next_start() == 2
    assert cluster.grows_at(workers) == pytest.approx(600 + GROW_AFTER_S, abs=LOOK_INTERVAL_S)
    grew_at = cluster.now
    assert (workers.for_next_start(), cluster.now) == (3, grew_at + LOOK_INTERVAL_S)


def test_workers_that_do_not_answer_end_no_start(at: Callable[[dict[float, int]], Cluster]) -> None:
    cluster = at({0: 1, 200: 2})
    workers = cluster.workers(2, 1)
    assert workers.for_next_start() == 1
    cluster.silent = 1
    for cluster.now in range(200, 5000):
        assert not workers.may_grow()
    cluster.silent = 0
    assert cluster.grows_at(workers) <= 5000 + GROW_AFTER_S + LOOK_INTERVAL_S


def test_after_a_larger_start_that_fails_the_run_goes_on_as_before_and_grows_later(
    at: Callable[[dict[float, int]], Cluster],
) -> None:
    cluster = at({0: 3, 200: 4})
    workers = cluster.workers(4, 2)
    assert workers.for_next_start() == 3
    cluster.grows_at(workers)
    workers.proved()
    assert (workers.for_next_start(), workers.grew) == (4, True)
    workers.grew_in_vain()
    failed_at = cluster.now
    assert (workers.for_next_start(), workers.grew) == (3, False)
    assert cluster.grows_at(workers) == pytest.approx(failed_at + 2 * GROW_AFTER_S, abs=LOOK_INTERVAL_S)
    workers.proved()
    assert (workers.for_next_start(), workers.grew) == (4, True)
    workers.proved()
    assert not workers.grew


def test_a_start_whose_workers_go_before_it_has_their_places_ends(tmp_path: Path) -> None:
    """Ray Train by itself would look for them again and again, and nobody would decide on fewer."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", NO_ROOM, str(tmp_path)]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert said.stdout.endswith("Ray could not start the workers (WorkerGroupStartupTimeoutError).\n"), said.stderr


@pytest.mark.timeout(400)
def test_a_run_goes_on_with_fewer_workers_and_grows_back_without_a_trace_in_its_curve(tmp_path: Path) -> None:
    require_namespaces()
    inputs = tmp_path / "inputs"
    tiny = make_run(tmp_path / "tiny", inputs=inputs, **SETTINGS)
    scratch = tiny.root / "scratch"
    scratch.mkdir(parents=True)
    # Steps take a while, since the driver hears of them up to a second late.
    environment = {**WORKER_ENVIRONMENT, **CPU_WORKER_ENVIRONMENT, "CLOISTER_SCRATCH": str(scratch), STEP_S: "0.4"}
    seen: list[Event] = []
    with RayPods(tmp_path, environment, private=scratch) as pods, ExitStack() as stack:
        first = stack.enter_context(pods.worker())
        second = stack.enter_context(pods.worker(SECOND_WORKER_ADDRESS))
        events, said = stack.enter_context(driver_in(pods.head, tiny, "support.hasty_driver"))

        def read_until(kind: type[Event], step: int = 0) -> None:
            for event in events:
                seen.append(event)
                if isinstance(event, kind) and getattr(event, "step", step) >= step:
                    return
            raise AssertionError(said.read_text())

        read_until(CheckpointSaved, 3)
        second.kill()
        read_until(Restarted)
        read_until(Progress)
        wait_until(lambda: len(first.ranks()) == 1, 30, said.read_text)
        (rank,) = first.ranks()
        rank.send_signal(signal.SIGSTOP)  # so that there is something left to do
        stack.enter_context(pods.worker(SECOND_WORKER_ADDRESS))
        wait_until(lambda: "workers are back" in said.read_text(), 120, said.read_text)
        rank.send_signal(signal.SIGCONT)
        read_until(Done)

    restarts = [event for event in seen if isinstance(event, Restarted)]
    assert [(event.workers, event.reason) for event in restarts] == [(1, "WorkersLost"), (2, "WorkersBack")]
    starts = starts_of(seen)
    progress = [[event for event in start if isinstance(event, Progress)] for start in starts]
    assert [{event.workers for event in start} for start in progress] == [{None}, {1}, {None}]
    for before, after in zip(starts, progress[1:], strict=False):
        assert after[0].step == 1 + max(event.step for event in before if isinstance(event, CheckpointSaved))
    assert tiny.checks()["worldSizes"] == [2, 1, 2]

    whole = make_run(tmp_path / "whole", inputs=inputs, **SETTINGS)
    run_ranks(whole).end()
    rows, expected = tiny.metrics(), whole.metrics()
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [trained_share(row) for row in rows] == pytest.approx([trained_share(row) for row in expected], rel=1e-9)
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], abs=CURVE)


def starts_of(events: list[Event]) -> list[list[Event]]:
    """The events of each start of the workers."""
    starts: list[list[Event]] = [[]]
    for event in events:
        if isinstance(event, Restarted):
            starts.append([])
        else:
            starts[-1].append(event)
    return starts


def trained_share(row: dict[str, Any]) -> float:
    """The part of a batch's tokens that are labels: other examples have another."""
    return float(row["trainedTokensPerSecond"] / row["tokensPerSecond"])
