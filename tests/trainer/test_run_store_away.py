"""A store that is away for a while, between starts and at a run's end: a real one, which is ended and started again."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cloister_api.errors import CloisterError
from cloister_api.events import CheckpointSaved, Done, EvaluationDone, Progress, Restarted
from cloister_api.exit_codes import ExitCode
from cloister_api.reasons import FailureReason
from cloister_trainer.storage import Unreachable, open_storage
from cloister_trainer.train import patience, setup
from cloister_trainer.train.checkpoint import CheckpointWriter, newest_step
from cloister_trainer.train.checkpoint_index import CheckpointIndex
from cloister_trainer.train.messages import Ended
from cloister_trainer.train.patience import LONGEST_PAUSE_S, STORE_PATIENCE_S, Patience
from cloister_trainer.train.state import TrainState
from support.driver_process import driver_of
from support.pods import wait_until
from support.s3_proxy import METHODS, S3Proxy
from support.seaweedfs import SeaweedFS
from support.tiny_ranks import run_ranks
from support.tiny_run import TinyRun, make_run

STEPS = 40
DEADLINE_S = 25
"""More than the longest pause."""
AWAY = Unreachable("s3://b does not answer.")


@pytest.fixture(scope="module")
def store() -> Iterator[SeaweedFS]:
    """One of our own, since it goes away."""
    with SeaweedFS() as store:
        store.create_bucket("runs")
        yield store


class SkewedStore(S3Proxy):
    """The store to somebody whose clock is wrong by more than it takes, as long as it is "away"."""

    def go_away(self) -> None:
        self.faults.answer, self.faults.answered = (403, "RequestTimeTooSkewed"), METHODS

    def come_back(self) -> None:
        self.faults.answer = None


@pytest.fixture(scope="module")
def skewed_store(store: SeaweedFS) -> Iterator[SkewedStore]:
    with SkewedStore(store) as skewed:
        yield skewed


def environment_of(store: SeaweedFS | SkewedStore) -> dict[str, str]:
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


def test_an_answer_ends_an_outage(clock: Clock) -> None:
    waiting = Patience(clock.pause)
    for _ in range(2):
        answers = iter([AWAY, AWAY, "here"])

        def ask(answers: Iterator[Any] = answers) -> Any:
            answer = next(answers)
            if isinstance(answer, CloisterError):
                raise answer
            return answer

        assert waiting.call(ask) == "here"
        clock.now += STORE_PATIENCE_S
    assert clock.pauses == [1, 2, 1, 2]


def test_without_an_answer_it_is_the_same_outage(clock: Clock) -> None:
    waiting = Patience(clock.pause)
    waiting.wait(AWAY)
    clock.now += STORE_PATIENCE_S
    with pytest.raises(Unreachable):
        waiting.wait(AWAY)
    waiting.renew()
    waiting.wait(AWAY)
    assert clock.pauses == [1, 1]


def test_the_last_checkpoint_is_written_again_until_the_store_is_back(
    tmp_path: Path, inputs: Path, store: SeaweedFS, monkeypatch: pytest.MonkeyPatch
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
        if len(failures) == 1:
            store.come_back()

    waiting = Patience(come_back)
    writer.wait(waiting)
    writer.close()
    assert failures == [FailureReason.STORAGE_UNAVAILABLE]
    assert newest_step(storage, tiny.run.layout) == 3
    with monkeypatch.context() as later:
        later.setattr(patience, "STORE_PATIENCE_S", 0.01)
        waiting.wait(AWAY)


def test_a_clock_that_the_store_refuses_is_waited_for_as_an_outage_is(
    tmp_path: Path, inputs: Path, skewed_store: SkewedStore
) -> None:
    tiny = run_in(tmp_path, inputs)
    storage = open_storage(environ=environment_of(skewed_store))
    writer = CheckpointWriter(storage, tiny.run.layout, 2, tmp_path / "writing")
    said: list[str] = []

    def set_the_clock(failure: CloisterError, _seconds: float) -> None:
        said.append(failure.message)
        skewed_store.come_back()

    skewed_store.go_away()
    part = (tiny.run.layout.metrics_part(3), b"{}\n")
    index = CheckpointIndex(step=3, settings={}, files=[], state=TrainState(step=3))
    writer.write(index, {"a": torch.ones(2)}, None, part, lambda _uri: None)
    writer.wait(Patience(set_the_clock))
    writer.close()
    skewed_store.go_away()
    assert Patience(set_the_clock).call(lambda: newest_step(storage, tiny.run.layout)) == 3
    assert len(said) == 2
    assert all("clock" in sentence for sentence in said)


def test_the_other_ranks_beat_whenever_the_first_goes_on_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    wire: queue.Queue[Any] = queue.Queue()
    beats: list[str] = []

    def find(tell: Callable[[], None]) -> str:
        for _ in range(3):
            tell()
        return "found"

    def on(first: bool) -> str:
        return setup.found_by_first(SimpleNamespace(is_first=first), find, lambda: beats.append("beat"))  # type: ignore[arg-type]

    monkeypatch.setattr(setup, "share", wire.put)
    assert on(True) == "found"
    monkeypatch.setattr(setup, "share", lambda _: wire.get(timeout=10))
    assert on(False) == "found"
    assert len(beats) == 3
    assert wire.empty()


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("when", ["at its start", "at its end"])
def test_all_ranks_outlast_a_store_that_is_away_for_longer_than_the_deadline(
    when: str, tmp_path: Path, inputs: Path, store: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment_of(store).items():
        monkeypatch.setenv(name, value)
    tiny = run_in(tmp_path, inputs, workers=2, validation=8, progressDeadlineSeconds=DEADLINE_S)
    over = threading.Event()

    def come_back() -> None:
        assert not over.wait(DEADLINE_S + 2), "nobody missed the store"
        store.come_back()
        over.wait()  # the server ends with the thread that starts it

    back = threading.Thread(target=come_back)

    def go_away() -> None:
        store.go_away()
        back.start()

    def at_the_end(message: Any, _act: Callable[[str], None]) -> None:
        if when == "at its end" and isinstance(message, EvaluationDone) and message.step == 6:
            go_away()

    if when == "at its start":
        go_away()
    try:
        assert run_ranks(tiny, 2, at_the_end).end() == Ended("finished", 6)
    finally:
        over.set()
        back.join()
        store.go_away()
        store.come_back()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("which", ["store", pytest.param("skewed_store", marks=pytest.mark.soak)])
def test_a_run_waits_for_its_store_between_starts_and_at_its_end(
    which: str, tmp_path: Path, inputs: Path, request: pytest.FixtureRequest
) -> None:
    """The store goes with a worker, and is away again at the last checkpoint: nothing but time is lost."""
    store: SeaweedFS | SkewedStore = request.getfixturevalue(which)
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
        read_until(lambda event: isinstance(event, Restarted))
        # Checkpoints between are not waited for: only the last one misses the store.
        read_until(lambda event: isinstance(event, Progress))
        comes_back_when_missed()
        read_until(lambda event: isinstance(event, Done))
        assert driver.process.wait(timeout=30) == ExitCode.DONE

    assert [event.reason for event in events if isinstance(event, Restarted)] == ["WorkersLost"]
    saved = [event.step for event in events if isinstance(event, CheckpointSaved)]
    assert saved[-1] == STEPS
    assert all(before < after for before, after in itertools.pairwise(saved))
