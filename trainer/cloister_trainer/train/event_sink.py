"""Where the ranks and the driver of a start meet. Imports little: its process starts with every start."""

from __future__ import annotations

import time

from cloister_trainer.train.messages import Message, Request


class EventSink:
    """Messages from ranks to the driver, requests from the driver to ranks. Lives in an actor of the driver's."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._request = Request.NONE
        self._heard_at: dict[int, float] = {}

    def exchange(self, rank: int, messages: list[Message]) -> int:
        """Take a rank's messages; the answer is the driver's newest request."""
        self._messages += messages
        self._heard_at[rank] = time.monotonic()
        return int(self._request)

    def leave(self, rank: int) -> None:
        """A rank has ended and is not expected to be heard any more."""
        self._heard_at.pop(rank, None)

    def drain(self) -> tuple[list[Message], float]:
        """Messages since the last call, and how long the quietest rank has not been heard, in seconds."""
        messages, self._messages = self._messages, []
        return messages, time.monotonic() - min(self._heard_at.values(), default=time.monotonic())

    def ask(self, request: int) -> None:
        """Ask all ranks."""
        self._request = Request(request)
