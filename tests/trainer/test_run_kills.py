"""kill -9 of a rank, of Ray Train's controller, of the driver and of the store, at random steps: not a bit is lost."""

from __future__ import annotations

import json
import random
import signal
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from cloister_api.events import CheckpointSaved, Restarted
from cloister_api.exit_codes import ExitCode
from cloister_api.layout import join
from cloister_trainer.storage import open_storage
from cloister_trainer.train.messages import Ended
from support.driver_process import Driver, driver_of
from support.pods import wait_until
from support.seaweedfs import SeaweedFS
from support.tiny_ranks import run_ranks
from support.tiny_run import TinyRun, make_run

PROCESSES = ("rank", "controller", "driver")
STEPS = 240
SETTINGS: dict[str, Any] = {
    "steps": STEPS,
    "workers": 2,
    "validation": 8,
    "evaluation": {"everySteps": 80, "everyEpochs": 1000},
}


@dataclass(frozen=True)
class Kill:
    """SIGKILL for `victim` at this many checkpoints of a start; at two or more it has made one of its own."""

    victim: str
    checkpoints: int


def kills(rng: random.Random) -> deque[Kill]:
    """One of each. The store is last: while it is away there are no checkpoints at which to strike."""
    victims = [*rng.sample(PROCESSES, len(PROCESSES)), "store"]
    return deque(Kill(victim, rng.randrange(2, 6)) for victim in victims)


class Survival:
    """A run through all of its kills, by the same command again where that one was killed."""

    def __init__(self, tiny: TinyRun, store: SeaweedFS, seed: int, away_s: float) -> None:
        self._tiny, self._store, self._rng, self._away_s = tiny, store, random.Random(seed), away_s
        self._left = kills(self._rng)
        self.restarts: list[Restarted] = []

    def run(self) -> None:
        while (code := self._until_driver_ends()) == -signal.SIGKILL:
            pass
        assert code == ExitCode.DONE
        assert not self._left, f"it ended before {self._left[0]}"

    def _until_driver_ends(self) -> int:
        with driver_of(self._tiny, {**self._store.environment(), "AWS_MAX_ATTEMPTS": "1"}) as driver:
            restarting, saved = False, 0
            for event in driver.events():
                if isinstance(event, Restarted):
                    self.restarts.append(event)
                    restarting, saved = False, 0
                if isinstance(event, CheckpointSaved) and not restarting and driver.workers():
                    saved += 1
                    if self._left and saved == self._left[0].checkpoints:
                        victim = self._left.popleft().victim
                        self._strike(victim, driver)
                        if victim == "driver":
                            break
                        restarting = victim != "store"
            return driver.process.wait(timeout=60)

    def _strike(self, victim: str, driver: Driver) -> None:
        match victim:
            case "rank":
                self._rng.choice(driver.workers()).kill()
            case "controller":
                max(driver.controllers(), key=psutil.Process.create_time).kill()
            case "driver":
                driver.process.kill()
            case "store":
                log = self._tiny.scratch / "logs" / "1" / "rank-00.log"
                misses = log.read_text().count("does not answer")
                self._store.go_away()
                wait_until(lambda: log.read_text().count("does not answer") > misses, 60, driver.said)
                threading.Event().wait(self._away_s)
                self._store.come_back()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inputs")


@pytest.fixture(scope="module")
def store() -> Iterator[SeaweedFS]:
    """One of our own, since it is killed."""
    with SeaweedFS() as store:
        store.create_bucket("runs")
        yield store


def assert_kills_cost_not_a_bit(
    folder: Path, inputs: Path, store: SeaweedFS, *, seed: int, stage: int, away_s: float
) -> None:
    """`away_s` is how long the store stays away once it has been missed."""
    whole = make_run(folder / "whole", inputs=inputs, stage=stage, **SETTINGS)
    assert run_ranks(whole, 2).end() == Ended("finished", STEPS)
    output = {"uri": f"s3://runs/{stage}-{seed}/out"}
    every_step: dict[str, Any] = {"checkpoint": {"interval": "0s"}, **SETTINGS}
    broken = make_run(folder / "broken", inputs=inputs, stage=stage, output=output, **every_step)
    survival = Survival(broken, store, seed, away_s)
    survival.run()

    assert [restart.reason for restart in survival.restarts] == ["WorkersLost"] * 2
    storage, layout = open_storage(environ=store.environment()), broken.run.layout
    assert storage.read(join(layout.adapter, "adapter_model.safetensors")) == whole.adapter()
    checks = json.loads(storage.read(layout.checks_file))
    assert (checks["step"], checks["worldSizes"]) == (STEPS, [2] * 4)
    assert checks["evaluations"] == whole.checks()["evaluations"]
    parts = sorted(part.name for part in storage.list(join(layout.root, "metrics")))
    rows = [
        json.loads(line) for part in parts for line in storage.read(join(layout.root, "metrics", part)).splitlines()
    ]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["loss"] for row in rows] == [row["loss"] for row in whole.metrics()]


@pytest.mark.timeout(900)
def test_a_kill_of_every_part_at_a_random_step_costs_not_a_bit(tmp_path: Path, inputs: Path, store: SeaweedFS) -> None:
    assert_kills_cost_not_a_bit(tmp_path, inputs, store, seed=6, stage=3, away_s=0)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_24_kills_and_a_store_that_is_away_for_a_minute_cost_not_a_bit(
    tmp_path: Path, inputs: Path, store: SeaweedFS, seed: int, stage: int
) -> None:
    assert_kills_cost_not_a_bit(tmp_path, inputs, store, seed=seed, stage=stage, away_s=60)
