"""A rank that makes no progress: the driver asks the others for their stacks before they are lost with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from cloister_api.events import FailureSeen
from cloister_api.reasons import FailureReason
from cloister_trainer.reporter import Reporter
from cloister_trainer.storage import open_storage
from cloister_trainer.train.driver import Driver, Interruption
from cloister_trainer.train.launch import WorkerGroup
from cloister_trainer.train.messages import Message, Request
from support.tiny_run import make_run

STALLED = FailureSeen(reason=FailureReason.NO_PROGRESS, message="Rank 1 made no progress.", step=5, node="node-1")


class Group:
    """Ranks that live on until they are asked to end."""

    def __init__(self, messages: list[Message], quiet_s: float) -> None:
        self._messages, self._quiet_s = messages, quiet_s
        self.asked: list[Request] = []

    def wait(self, timeout_s: float) -> bool:
        return Request.ABORT in self.asked

    def drain(self) -> tuple[list[Message], float]:
        messages, self._messages = self._messages, []
        return messages, self._quiet_s

    def ask(self, request: Request) -> None:
        self.asked.append(request)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("messages", "quiet_s", "words"), [([STALLED], 0.0, "Rank 1 made no progress."), ([], 31.0, "silent for 31 s")]
)
def test_all_ranks_are_asked_for_their_stacks_when_one_makes_no_progress(
    messages: list[Message], quiet_s: float, words: str, tmp_path: Path
) -> None:
    tiny = make_run(tmp_path, workers=2, progressDeadlineSeconds=30)
    storage, events = open_storage(), list[Any]()
    driver = Driver(tiny.run, tiny.plan, storage, Reporter(), tiny.scratch, events.append, Interruption(), {})
    group = Group(messages, quiet_s)
    (failure,) = driver._watch(cast(WorkerGroup, group), 2).failures
    assert failure.reason is FailureReason.NO_PROGRESS and words in failure.message
    assert group.asked == [Request.ABORT]
    if not messages:
        assert failure.message.endswith(f" in {tiny.run.layout.logs(1)}.")


@pytest.mark.timeout(30)
def test_of_a_start_with_one_worker_no_others_are_named(tmp_path: Path) -> None:
    tiny = make_run(tmp_path, workers=2, progressDeadlineSeconds=30)
    driver = Driver(tiny.run, tiny.plan, open_storage(), Reporter(), tiny.scratch, print, Interruption(), {})
    (failure,) = driver._watch(cast(WorkerGroup, Group([], 31.0)), 1).failures
    assert failure.message == "A worker has been silent for 31 s."
