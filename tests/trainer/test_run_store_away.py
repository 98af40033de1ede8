"""A store that is away for a while, between starts and at a run's end: a real one, which is ended and started again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cloister_api.errors import CloisterError
from cloister_api.events import CheckpointSaved, Done, EvaluationDone, Restarted
from cloister_api.exit_codes import ExitCode
from cloister_api.reasons import FailureReason
from cloister_trainer.storage import Unreachable, open_storage
from cloister_trainer.train import patience
from cloister_trainer.train.checkpoint import CheckpointIndex, CheckpointWriter, newest_step
from cloister_trainer.train.patience import LONGEST_PAUSE_S, STORE_PATIENCE_S, Patience
from cloister_trainer.train.state import TrainState
from support.driver_process import driver_of
from support.pods import wait_until
from support.seaweedfs import SeaweedFS
from support.tiny_run import TinyRun, make_run

STEPS = 40
AWAY = Unreachable("s3://b does not answer.")


@pytest.fixture(scope="module")
def store() -> Iterator[SeaweedFS]:
    """One of our own, since it goes away."""
    with SeaweedFS() as store:
        store.create_bucket("runs")
        yield store


def environment_of(store: SeaweedFS) -> dict[str, str]:
    return {**store.environment(), "AWS_MAX_ATTEMPTS": "1"}


def run_in(root: Path, inputs: Path, **settings: Any) -> TinyRun:
    """A run whose files lie in the store."""
    return make_run(root, inputs=inputs, output={"uri": f"s3://runs/{root.name}/out"}, **settings)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inputs")


class Clock:
    """Time passes only while somebody waits."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def pause(self, _failure: CloisterError, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(patience, "time", clock)
    return clock


def always(failure: CloisterError) -> Callable[[], None]:
    def ask() -> None:
        raise failure

    return ask


def test_pauses_grow_and_end_after_five_minutes(clock: Clock) -> None:
    with pytest.raises(Unreachable):
        Patience(clock.pause).call(always(AWAY))
    assert clock.pauses[:6] == [1, 2, 4, 8, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    assert sum(clock.pauses) == STORE_PATIENCE_S


def test_only_a_store_that_is_away_is_waited_for(clock: Clock) -> None:
    for reason in set(FailureReason) - {FailureReason.STORAGE_UNAVAILABLE}:
        with pytest.raises(CloisterError):
            Patience(clock.pause).call(always(CloisterError(reason, "Another failure.")))
    assert clock.pauses == []


def test_an_outage_is_a_new_one_only_after_an_advance(clock: Clock) -> None:
    waiting = Patience(clock.pause)
    waiting.wait(AWAY)
    clock.now += STORE_PATIENCE_S
    with pytest.raises(Unreachable):
        waiting.wait(AWAY)
    waiting.renew()
    waiting.wait(AWAY)
    assert clock.pauses == [1, 1]


def test_the_last_checkpoint_is_written_again_until_the_store_is_back(
    tmp_path: Path, inputs: Path, store: SeaweedFS
) -> None:
    tiny = run_in(tmp_path, inputs)
    storage = open_storage(environ=environment_of(store))
    writer = CheckpointWriter(storage, tiny.run.layout, 2, tmp_path / "writing")
    index = CheckpointIndex(step=3, settings={}, files=[], state=TrainState(step=3))
    store.go_away()
    writer.write(index, {"a": torch.ones(2)}, None, (tiny.run.layout.metrics_part(3), b"{}\n"), lambda _uri: None)
    failures: list[FailureReason] = []

    def come_back(failure: CloisterError, _seconds: float) -> None:
        failures.append(failure.reason)
        store.come_back()

    writer.wait(Patience(come_back))
    writer.close()
    assert failures == [FailureReason.STORAGE_UNAVAILABLE]
    assert newest_step(storage, tiny.run.layout) == 3


@pytest.mark.timeout(300)
def test_a_run_waits_for_its_store_between_starts_and_at_its_end(
    tmp_path: Path, inputs: Path, store: SeaweedFS
) -> None:
    """The store goes with a worker, and again just before the last checkpoint: nothing but time is lost."""
    tiny = run_in(
        tmp_path,
        inputs,
        steps=STEPS,
        validation=8,
        checkpoint={"interval": "0s"},
        evaluation={"everyEpochs": 1000},
    )
    events: list[Any] = []
    with driver_of(tiny, environment_of(store)) as driver:
        told = driver.events()

        def read_until(holds: Callable[[Any], bool]) -> None:
            for event in told:
                events.append(event)
                if holds(event):
                    return
            raise AssertionError(driver.said())

        def comes_back_when_missed() -> None:
            waits = driver.said().count("for the store")
            store.go_away()
            wait_until(lambda: driver.said().count("for the store") > waits, 60, driver.said)
            store.come_back()

        read_until(lambda event: isinstance(event, CheckpointSaved) and event.step >= 5)
        driver.workers()[0].kill()
        comes_back_when_missed()
        read_until(lambda event: isinstance(event, EvaluationDone) and event.step == STEPS)
        comes_back_when_missed()
        read_until(lambda event: isinstance(event, Done))
        assert driver.process.wait(timeout=30) == ExitCode.DONE

    assert [event.reason for event in events if isinstance(event, Restarted)] == ["WorkersLost"]
    saved = [event.step for event in events if isinstance(event, CheckpointSaved)]
    assert saved[-1] == STEPS
    assert all(before < after for before, after in itertools.pairwise(saved))
