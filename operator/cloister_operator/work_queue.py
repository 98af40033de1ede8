"""A queue of jobs to look at: each at most once in the queue and never twice at a time."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable

from cloister_operator.logs import about_job
from cloister_operator.store import Key

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0
log = logging.getLogger(__name__)

Work = Callable[[Key], Awaitable[float | None]]
"""Looks at a job; returns after how many seconds to look again, if nothing happens."""


class WorkQueue:
    """Keys that are due, urgent ones first, else in the order in which they became due; and keys that wait.

    What waits is a timer of the event loop, so that thousands of waiting keys cost nothing until their time comes.
    A key that is due while somebody works at it is free for the next one as soon as that work ends.
    """

    def __init__(self) -> None:
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._due: set[Key] = set()
        self._busy: set[Key] = set()
        self._urgent: set[Key] = set()
        self._free: asyncio.PriorityQueue[tuple[bool, int, Key]] = asyncio.PriorityQueue()
        """Exactly the keys that are due and not busy, after whether they can wait, and a running number."""
        self._numbers = itertools.count()
        self._failures: dict[Key, int] = {}

    def add(self, key: Key, after: float = 0.0, *, urgent: bool = False) -> None:
        """Look at a job so many seconds from now, or earlier when it is due earlier. Urgent: before all that are not.

        What is due already keeps its place.
        """
        loop = asyncio.get_running_loop()
        due, timer = loop.time() + after, self._timers.get(key)
        if key in self._due or (timer is not None and timer.when() <= due):
            return
        if timer is not None:
            timer.cancel()
        if urgent:
            self._urgent.add(key)
        if after > 0:
            self._timers[key] = loop.call_at(due, self._is_due, key)
        else:
            self._is_due(key)

    def __len__(self) -> int:
        """How many are due now."""
        return len(self._due)

    async def run(self, work: Work) -> None:
        """Work until cancelled. Several may run at once; what one works at, no other takes."""
        while True:
            _, _, key = await self._free.get()
            self._due.discard(key)
            self._urgent.discard(key)
            self._busy.add(key)
            try:
                again = await work(key)
                self._failures.pop(key, None)
                if again is not None:
                    self.add(key, again)
            except Exception as error:
                pause = self._pause(key)
                words = error or type(error).__name__
                log.warning("%s/%s: %s; again in %.1f s", *key, words, pause, extra=about_job(key))
                log.debug("trace", exc_info=error, extra=about_job(key))
                self.add(key, pause)
            finally:
                self._busy.discard(key)
                if key in self._due:
                    self._set_free(key)

    def _is_due(self, key: Key) -> None:
        self._timers.pop(key, None)
        self._due.add(key)
        if key not in self._busy:
            self._set_free(key)

    def _set_free(self, key: Key) -> None:
        self._free.put_nowait((key not in self._urgent, next(self._numbers), key))

    def _pause(self, key: Key) -> float:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        return float(min(FIRST_PAUSE_SECONDS * 2 ** min(failures - 1, 10), LONGEST_PAUSE_SECONDS))
