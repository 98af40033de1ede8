"""A queue of jobs to look at: each at most once in the queue and never twice at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from cloister_operator.store import Key

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0
log = logging.getLogger(__name__)

Work = Callable[[Key], Awaitable[float | None]]
"""Looks at a job; returns after how many seconds to look again, if nothing happens."""


class WorkQueue:
    """Keys with the time at which they are due."""

    def __init__(self) -> None:
        self._due: dict[Key, float] = {}
        self._busy: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._changed = asyncio.Event()

    def add(self, key: Key, after: float = 0.0) -> None:
        """Look at a job so many seconds from now, or earlier when it is due earlier."""
        due = asyncio.get_running_loop().time() + after
        if key not in self._due or due < self._due[key]:
            self._due[key] = due
            self._changed.set()

    def __len__(self) -> int:
        now = asyncio.get_running_loop().time()
        return sum(due <= now for due in self._due.values())

    async def run(self, work: Work) -> None:
        """Work until cancelled. Several may run at once; what one works at, no other takes."""
        while True:
            key = await self._next()
            self._busy.add(key)
            try:
                again = await work(key)
                self._failures.pop(key, None)
                if again is not None:
                    self.add(key, again)
            except Exception as error:
                pause = self._pause(key)
                log.warning("%s/%s: %s; again in %.1f s", *key, error or type(error).__name__, pause)
                log.debug("trace", exc_info=error)
                self.add(key, pause)
            finally:
                self._busy.discard(key)
                self._changed.set()

    def _pause(self, key: Key) -> float:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        return float(min(FIRST_PAUSE_SECONDS * 2 ** min(failures - 1, 10), LONGEST_PAUSE_SECONDS))

    async def _next(self) -> Key:
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            free = [(due, key) for key, due in self._due.items() if key not in self._busy]
            due, key = min(free, default=(None, None))
            if due is not None and key is not None and due <= loop.time():
                del self._due[key]
                return key
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), None if due is None else due - loop.time())
