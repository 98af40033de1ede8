"""Notices that a rank makes no progress, or that the driver wants it to end: stacks are stored and the process ends."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Self

from cloister_trainer.train.messages import Request, Sink

POLL_S = 0.5
SPREAD_S = 6.0
"""A stalled rank takes the group with it when it ends: before, it waits for the stacks of the others, which stall, too,
or are asked for them by the driver."""
EXIT_CODE = 70


class Watchdog:
    """A thread beside the loop. `beat` is called at every step and wherever long work advances."""

    def __init__(
        self, deadline_s: float, sink: Sink, on_stall: Callable[[float], None], on_abort: Callable[[], None]
    ) -> None:
        self._deadline_s, self._sink, self._on_stall, self._on_abort = deadline_s, sink, on_stall, on_abort
        self._beat_at = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def beat(self) -> None:
        """The rank advances."""
        self._beat_at = time.monotonic()

    def _watch(self) -> None:
        while not self._closed.wait(POLL_S):
            stalled_s = time.monotonic() - self._beat_at
            if stalled_s > self._deadline_s:
                self._on_stall(stalled_s)
                self._closed.wait(SPREAD_S)
                os._exit(EXIT_CODE)
            if self._sink.request() is Request.ABORT:
                self._on_abort()
                os._exit(EXIT_CODE)
