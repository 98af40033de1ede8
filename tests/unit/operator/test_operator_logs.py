"""When a submitter's log is read again: seldom while it trains, at once when Ray's run is over, never twice in vain."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, cast

import pytest

from cloister_operator.cluster import Cluster, ClusterError
from cloister_operator.recent import AWAY_SECONDS, PROGRESS_SECONDS, RecentLogs
from support.operator_world import World

KEY = ("legal", "contracts")


@dataclass
class Logs:
    """A cluster whose only answer is a log that grows, or an error."""

    asked: int = 0
    away: bool = False
    now: float = 0.0

    async def log(self, namespace: str, name: str, container: str) -> str:
        self.asked += 1
        if self.away:
            raise ClusterError(500, "no route to the node")
        return f"line {self.asked}"


@pytest.fixture
def logs() -> Logs:
    return Logs()


@pytest.fixture
def recent(logs: Logs) -> RecentLogs:
    return RecentLogs(cast(Cluster, logs), lambda: logs.now)


def read(recent: RecentLogs, job_status: str = "RUNNING", deployment: str = "Running") -> str:
    world = World()
    world.prepared()
    world.running()
    world.ray(job_status, deployment)
    run = next(found for (kind, _), found in world.objects.items() if kind == "RayJob")
    jobs = [found for (kind, _), found in world.objects.items() if kind == "Job"]
    pods: list[dict[str, Any]] = [found for (kind, _), found in world.objects.items() if kind == "Pod"]
    texts = asyncio.run(recent.read(KEY, [run], jobs, pods))
    (text,) = texts.values()
    return text


def test_while_it_trains_the_log_is_read_every_few_seconds(logs: Logs, recent: RecentLogs) -> None:
    assert [read(recent), read(recent)] == ["line 1", "line 1"]
    logs.now += PROGRESS_SECONDS
    assert read(recent) == "line 2"


def test_the_last_words_are_read_at_once_and_then_no_more(logs: Logs, recent: RecentLogs) -> None:
    assert read(recent) == "line 1"
    assert read(recent, "SUCCEEDED") == "line 2"
    assert read(recent, "SUCCEEDED", "Complete") == "line 3"
    assert read(recent, "SUCCEEDED", "Complete") == "line 3"


def test_a_log_whose_node_is_away_says_what_it_said_and_is_left_alone_for_a_while(
    logs: Logs, recent: RecentLogs
) -> None:
    read(recent)
    logs.away, logs.now = True, PROGRESS_SECONDS
    for status in ("RUNNING", "FAILED", "FAILED"):
        assert read(recent, status) == "line 1"
    assert logs.asked == 2
    logs.away, logs.now = False, logs.now + AWAY_SECONDS
    assert read(recent, "FAILED") == "line 3"
