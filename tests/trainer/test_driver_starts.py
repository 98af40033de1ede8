"""Which failed starts the driver follows by another one: the starts are scripted, the decisions are its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from cloister_api.errors import CloisterError
from cloister_api.events import Restarted
from cloister_api.reasons import FailureReason
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import open_storage
from cloister_trainer.train import driver as module
from cloister_trainer.train.driver import MAX_FRUITLESS_STARTS, MAX_UNBEGUN_STARTS, Driver, Interruption
from cloister_trainer.train.elastic import Presence, Workers
from cloister_trainer.train.messages import Ended
from support.tiny_run import make_run

DOES_NOT_FIT = CloisterError(FailureReason.DOES_NOT_FIT, "It does not fit.")
LOST = CloisterError(FailureReason.WORKERS_LOST, "Ray could not start the workers.")
EGRESS = CloisterError(FailureReason.EGRESS_NOT_ENFORCED, "The network is open.")
FINISHED = Ended("finished", 9)

Play = Callable[..., list[tuple[int, str | None]]]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Makes scripted starts of 2 workers of which 1 may be lost: (outcome, newest step after it), from a size on.

    Returns each start's size, and why it was made. A start that ends otherwise than in a failure has been heard.
    """

    def run(script: list[tuple[Any, int]], size: int = 2) -> list[tuple[int, str | None]]:
        tiny = make_run(tmp_path, workers=2, distribution={"workers": 2, "minWorkers": 1, "gpusPerWorker": 0})
        workers = Workers(2, 1, Presence(lambda: 2, lambda: 2, lambda _: None, lambda _: None))
        workers._size = workers._proven = size
        steps, made, emitted = [0], list[int](), list[Any]()
        for name, value in {
            "ray_cluster": lambda *_: nullcontext(),
            "own_address": lambda: "",
            "MemoryKills": lambda _: None,
            "workers_of": lambda *_: workers,
            "newest_step": lambda *_: steps[0],
        }.items():
            monkeypatch.setattr(module, name, value)
        driver = Driver(
            tiny.run, tiny.plan, open_storage(), Reporter(), tiny.scratch, emitted.append, Interruption(), {}
        )
        outcomes = iter(script)

        def start(_ordinal: int, size: int) -> Ended:
            made.append(size)
            outcome, steps[0] = next(outcomes)
            driver._heard = outcome is not LOST
            if isinstance(outcome, CloisterError):
                raise outcome
            return outcome

        monkeypatch.setattr(driver, "_start", start)
        driver._start_until_finished()
        why = [event.reason for event in emitted if isinstance(event, Restarted)]
        return list(zip(made, [None, *why], strict=True))

    return run


def test_a_start_that_grew_and_does_not_fit_is_followed_by_one_of_the_size_before(play: Play) -> None:
    assert play([(DOES_NOT_FIT, 0), (FINISHED, 9)], size=1) == [(2, None), (1, "DoesNotFit")]


def test_a_plan_that_does_not_fit_without_growth_ends_the_run(play: Play) -> None:
    with pytest.raises(CloisterError, match="does not fit"):
        play([(DOES_NOT_FIT, 0), (FINISHED, 9)])


def test_an_open_network_ends_the_run_also_after_growth(play: Play) -> None:
    with pytest.raises(CloisterError, match="network is open"):
        play([(EGRESS, 0), (FINISHED, 9)], size=1)


def test_starts_that_never_began_have_a_count_of_their_own(play: Play) -> None:
    assert MAX_UNBEGUN_STARTS > MAX_FRUITLESS_STARTS
    assert len(play([(LOST, 0)] * (MAX_UNBEGUN_STARTS - 1) + [(FINISHED, 9)])) == MAX_UNBEGUN_STARTS
    with pytest.raises(CloisterError, match="could not start"):
        play([(LOST, 0)] * MAX_UNBEGUN_STARTS)


def test_a_checkpoint_begins_the_counts_anew(play: Play) -> None:
    lost = [(LOST, 0)] * (MAX_UNBEGUN_STARTS - 1)
    assert (
        len(play([*lost, (Ended("interrupted", 3), 3), *[(LOST, 3)] * (MAX_UNBEGUN_STARTS - 1), (FINISHED, 9)]))
        == 2 * MAX_UNBEGUN_STARTS
    )
