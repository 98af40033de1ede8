"""The driver with a Ray of its own: workers that are sent away or killed, killed drivers, an interruption."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from cloister_api.events import CheckpointSaved, Done, EvaluationDone, Event, Progress, Restarted
from cloister_api.exit_codes import ExitCode
from cloister_trainer.records import Checks
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import open_storage
from cloister_trainer.train.driver import train
from support.driver_process import driver_of
from support.odd_rank import STEP_S
from support.tiny_ranks import run_ranks
from support.tiny_run import TinyRun, make_run

STEPS = 150
RAYS_AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
"""They wait a minute for a control store that has gone with the driver, then end too."""
SETTINGS: dict[str, Any] = {
    "steps": STEPS,
    "workers": 2,
    "validation": 8,
    "checkpoint": {"interval": "0s"},
    "evaluation": {"everySteps": 50, "everyEpochs": 1000},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inputs")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> TinyRun:
    """A run of two ranks that nothing has disturbed, without Ray."""
    tiny = make_run(tmp_path_factory.mktemp("whole"), inputs=inputs, **SETTINGS)
    run_ranks(tiny, 2).end()
    return tiny


@pytest.mark.timeout(900)
def test_a_worker_that_is_sent_away_or_killed_costs_not_a_bit(tmp_path: Path, inputs: Path, whole: TinyRun) -> None:
    tiny = make_run(tmp_path, inputs=inputs, **SETTINGS)
    rng = random.Random(7)
    blows = [(rng.randrange(5, 50), signal.SIGTERM), (rng.randrange(70, 110), signal.SIGKILL)]

    events = []
    with driver_of(tiny) as driver:
        for event in driver.events():
            events.append(event)
            if blows and isinstance(event, CheckpointSaved) and event.step >= blows[0][0]:
                _, blow = blows.pop(0)
                driver.workers()[-1].send_signal(blow)
        assert driver.process.wait(timeout=30) == ExitCode.DONE

    restarts = [event for event in events if isinstance(event, Restarted)]
    assert [(restart.workers, restart.reason) for restart in restarts] == [(2, "WorkersLost")] * 2
    assert tiny.adapter() == whole.adapter()
    checks = Checks.model_validate(tiny.checks())
    assert (checks.step, checks.world_sizes) == (STEPS, [2, 2, 2])
    assert [row["step"] for row in tiny.metrics()] == list(range(1, STEPS + 1))
    assert {event.step for event in events if isinstance(event, EvaluationDone)} == {0, 50, 100, 150}
    assert [event.step for event in events if isinstance(event, Progress)][-1] == STEPS
    assert isinstance(events[-1], Done) and events[-1].staged_uri == tiny.run.layout.adapter
    logs = open_storage().list(f"{tiny.run.layout.root}/attempts/1/logs")
    assert [log.name for log in logs] == ["rank-00.log", "rank-01.log"]

    told: list[Event] = []
    assert train(tiny.run, tiny.plan, open_storage(), Reporter(), tiny.scratch, told.append) == checks
    assert told == [events[-1]]


@pytest.mark.timeout(300)
def test_a_drained_rank_other_than_the_first_has_the_step_under_way_stored_and_nothing_else(
    tmp_path: Path, inputs: Path
) -> None:
    """No checkpoint is due: without the wish of one rank, which all have to hear of, an hour's steps would be lost."""
    tiny = make_run(tmp_path, inputs=inputs, steps=4, workers=2, checkpoint={"interval": "1h"})
    with driver_of(tiny, {STEP_S: "3"}) as driver:
        events = driver.events()
        made = next(event.step for event in events if isinstance(event, Progress))
        drained = log_holder(driver.workers(), tiny.scratch / "logs" / "1" / "rank-01.log")
        drained.send_signal(signal.SIGTERM)
        later = list(events)
        assert driver.process.wait(timeout=30) == ExitCode.DONE

    told = [event for event in later if isinstance(event, CheckpointSaved | Restarted | Done)]
    assert [event.event for event in told] == ["checkpoint", "restart", "checkpoint", "done"]
    assert [event.step for event in told if isinstance(event, CheckpointSaved)] == [made + 1, 4]
    restarted = later.index(told[1])
    assert next(event.step for event in later[restarted:] if isinstance(event, Progress)) == made + 2
    assert [row["step"] for row in tiny.metrics()] == [1, 2, 3, 4]
    assert tiny.checks()["worldSizes"] == [2, 2]


def log_holder(workers: list[psutil.Process], log: Path) -> psutil.Process:
    """The rank that writes this log."""
    return next(worker for worker in workers if str(log) in {file.path for file in worker.open_files()})


@pytest.mark.timeout(900)
def test_a_killed_driver_leaves_nothing_running_and_the_same_command_goes_on(
    tmp_path: Path, inputs: Path, whole: TinyRun
) -> None:
    tiny = make_run(tmp_path, inputs=inputs, **SETTINGS)
    rng = random.Random(11)

    with driver_of(tiny) as driver:
        driver.until_checkpoint(rng.randrange(5, 60))
        assert len(driver.workers()) == 2
        driver.process.kill()
        _, agents = psutil.wait_procs(driver.descendants, timeout=20)
        assert {process.name() for process in agents if process.is_running()} <= RAYS_AGENTS

    with driver_of(tiny) as driver:
        driver.until_checkpoint(rng.randrange(70, 110))
        driver.process.send_signal(signal.SIGTERM)
        assert driver.process.wait(timeout=60) == ExitCode.INTERRUPTED
        _, alive = psutil.wait_procs(driver.descendants, timeout=30)
        assert alive == []

    with driver_of(tiny) as driver:
        assert any(isinstance(event, Done) for event in driver.events())
        assert driver.process.wait(timeout=30) == ExitCode.DONE
    assert tiny.adapter() == whole.adapter()
    assert tiny.checks()["worldSizes"] == [2, 2, 2]
    assert psutil.wait_procs(agents, timeout=90)[1] == []
    assert [row["loss"] for row in tiny.metrics()] == [row["loss"] for row in whole.metrics()]
