"""The work queue: when a job is looked at, in which order, and that no change is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from cloister_operator import work_queue
from cloister_operator.store import Key
from cloister_operator.work_queue import WorkQueue

A, B, C = (("legal", name) for name in "abc")


@asynccontextmanager
async def workers(queue: WorkQueue, work: Callable[[Key], Awaitable[float | None]], count: int) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(queue.run(work)) for _ in range(count)]
    try:
        async with asyncio.timeout(10):
            yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


class Looks:
    """Notes what is looked at, and says when to look again."""

    def __init__(self, again: dict[Key, list[float]] | None = None) -> None:
        self.keys: list[Key] = []
        self.times: list[float] = []
        self._again = again or {}

    async def __call__(self, key: Key) -> float | None:
        self.keys.append(key)
        self.times.append(asyncio.get_running_loop().time())
        pauses = self._again.get(key)
        return pauses.pop(0) if pauses else None


def test_keys_are_taken_in_the_order_in_which_they_are_due() -> None:
    async def run() -> None:
        queue, looks = WorkQueue(), Looks()
        for key, after in ((C, 0.06), (B, 0.03), (A, 0.0)):
            queue.add(key, after)
        async with workers(queue, looks, 1):
            await until(lambda: len(looks.keys) == 3)
        assert looks.keys == [A, B, C]

    asyncio.run(run())


@pytest.mark.parametrize("waits", [(60.0, 0.02), (0.02, 60.0)], ids=["earlier later", "later later"])
def test_the_earlier_of_two_times_counts(waits: tuple[float, float]) -> None:
    async def run() -> None:
        queue, looks = WorkQueue(), Looks()
        begun = asyncio.get_running_loop().time()
        for wait in waits:
            queue.add(A, wait)
        async with workers(queue, looks, 2):
            await until(lambda: bool(looks.keys))
            await asyncio.sleep(0.05)
        assert looks.keys == [A]
        assert 0.015 < looks.times[0] - begun < 5

    asyncio.run(run())


def test_the_length_counts_what_is_due_and_nobody_works_at() -> None:
    async def run() -> None:
        queue, going = WorkQueue(), asyncio.Event()

        async def look(key: Key) -> None:
            await going.wait()

        queue.add(A)
        queue.add(B)
        queue.add(B)
        queue.add(C, after=60)
        assert len(queue) == 2
        async with workers(queue, look, 1):
            await until(lambda: len(queue) == 1)
            queue.add(A)
            assert len(queue) == 2, "A is worked at and due once more"
            going.set()
            await until(lambda: len(queue) == 0)

    asyncio.run(run())


def test_work_that_asks_for_it_is_repeated_at_its_time() -> None:
    async def run() -> None:
        queue, looks = WorkQueue(), Looks({A: [0.05, 0.0]})
        queue.add(A)
        async with workers(queue, looks, 2):
            await until(lambda: len(looks.keys) == 3)
        assert looks.times[1] - looks.times[0] >= 0.045
        assert looks.times[2] - looks.times[1] < 5

    asyncio.run(run())


def test_the_pause_after_failures_doubles_and_success_ends_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(work_queue, "FIRST_PAUSE_SECONDS", 0.1)
    fails = [True, True, True, False, True, False]

    async def run() -> None:
        queue = WorkQueue()

        async def look(key: Key) -> float | None:
            if fails.pop(0):
                raise OSError("away")
            return 0.0 if fails else None

        queue.add(A)
        async with workers(queue, look, 1):
            await until(lambda: not fails)

    asyncio.run(run())
    pauses = [record.getMessage().rpartition("again in ")[2] for record in caplog.records]
    assert pauses == ["0.1 s", "0.2 s", "0.4 s", "0.1 s"]


def test_no_change_is_lost_however_work_and_changes_overlap() -> None:
    """Whatever is added is looked at by somebody who begins after that, and by one at a time."""
    keys = [("legal", str(number)) for number in range(20)]

    async def run(chance: random.Random) -> None:
        queue, added, looked = WorkQueue(), dict.fromkeys(keys, 0), dict.fromkeys(keys, 0)
        busy, twice = set[Key](), set[Key]()

        async def look(key: Key) -> float | None:
            twice.update({key} & busy)
            busy.add(key)
            looked[key] = added[key]
            await asyncio.sleep(chance.choice((0, 0, 0.001)))
            busy.discard(key)
            if chance.random() < 0.1:
                raise OSError("away")
            return chance.choice((None, 0.0005, 60.0))

        async with workers(queue, look, 8):
            for _ in range(3000):
                key = chance.choice(keys)
                added[key] += 1
                queue.add(key, chance.choice((0, 0, 0.0005, 0.002)))
                if chance.random() < 0.2:
                    await asyncio.sleep(0)
            await until(lambda: looked == added)
            await until(lambda: not busy)
        assert not twice

    asyncio.run(run(random.Random(7)))


def test_urgent_keys_go_first_and_what_is_due_keeps_its_place() -> None:
    looked: list[Key] = []

    async def look(key: Key) -> float | None:
        looked.append(key)
        return None

    async def run() -> None:
        queue = WorkQueue()
        for name in ("a", "b"):
            queue.add(("legal", name))
        queue.add(("legal", "new"), urgent=True)
        queue.add(("legal", "b"), urgent=True)
        queue.add(("legal", "newer"), urgent=True)
        worker = asyncio.create_task(queue.run(look))
        async with asyncio.timeout(5):
            while len(looked) < 4:
                await asyncio.sleep(0.001)
        worker.cancel()

    asyncio.run(run())
    assert [name for _, name in looked] == ["new", "newer", "a", "b"]
