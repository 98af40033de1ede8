"""Who was killed for memory: the counters of both versions of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.train import memory_kills as module

V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"
V2 = "low 0\nhigh 0\nmax 7\noom 2\noom_kill 2\noom_group_kill 0\n"


@pytest.mark.parametrize(("text", "count"), [(V1, 3), (V2, 2), ("high 0\n", 0), (None, 0)])
def test_the_counter_is_read(text: str | None, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = tmp_path / "memory.events"
    if text is not None:
        counter.write_text(text)
    monkeypatch.setattr(module, "COUNTERS", (counter,))
    assert module.memory_kills() == count


LOST = CloisterError(FailureReason.WORKERS_LOST, "Another worker's process ended.", step=7)


def test_each_kill_explains_one_failure() -> None:
    counters = {"10.0.0.1": 0, "10.0.0.2": 0}
    kills = module.MemoryKills("10.0.0.1", lambda: dict(counters))
    assert kills.explain(LOST) is LOST
    counters["10.0.0.2"] = 1
    explained = kills.explain(LOST)
    assert (explained.reason, explained.node, explained.step) == (FailureReason.OUT_OF_MEMORY, "10.0.0.2", 7)
    assert "pods.worker.resources.limits" in explained.message
    assert kills.explain(LOST) is LOST


def test_a_kill_beside_another_failure_is_not_told_later() -> None:
    counters = {"10.0.0.2": 3}
    kills = module.MemoryKills("10.0.0.1", lambda: dict(counters))
    silent = CloisterError(FailureReason.NO_PROGRESS, "A worker has been silent.")
    assert kills.explain(silent) is silent
    assert kills.explain(LOST) is LOST


def test_a_ray_that_is_gone_hides_no_failure() -> None:
    def gone() -> dict[str, int]:
        raise ray.exceptions.RaySystemError("the head is gone")

    assert module.MemoryKills("10.0.0.1", gone).explain(LOST) is LOST
