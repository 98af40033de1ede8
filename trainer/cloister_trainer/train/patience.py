"""Waiting for a store that is away: what it would cost to end a run for an outage of a minute is far more."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason

STORE_PATIENCE_S = 300.0
"""How long a store may be away, beyond the retries of each request."""
LONGEST_PAUSE_S = 15.0

T = TypeVar("T")


class Patience:
    """Pauses of 1, 2, 4, 8 and then 15 s, until the store has been away for STORE_PATIENCE_S.

    An answer ends an outage: the next one has all of that time again.

    `pause` is given the failure and the seconds; it may raise to end the waiting.
    """

    def __init__(self, pause: Callable[[CloisterError, float], None]) -> None:
        self._pause = pause
        self._away_since: float | None = None
        self._pauses = 0

    def renew(self) -> None:
        """The store has answered: the next outage is another one."""
        self._away_since, self._pauses = None, 0

    def wait(self, failure: CloisterError) -> None:
        """Pause once. Raises `failure` when it is another one than a store that is away, or when this took too long."""
        if failure.reason is not FailureReason.STORAGE_UNAVAILABLE:
            raise failure
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
        left_s = self._away_since + STORE_PATIENCE_S - now
        if left_s <= 0:
            raise failure
        self._pause(failure, min(2.0**self._pauses, LONGEST_PAUSE_S, left_s))
        self._pauses += 1

    def call(self, ask: Callable[[], T]) -> T:
        """What `ask` returns, asked again while the store is away."""
        while True:
            try:
                answer = ask()
            except CloisterError as failure:
                self.wait(failure)
            else:
                self.renew()
                return answer
