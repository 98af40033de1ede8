"""Who was killed for memory: the counters of both versions of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

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
