"""What workers tell the driver, and what the driver asks of them; whoever carries it never makes training wait."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, Protocol

from cloister_api.events import Event


class Request(IntEnum):
    """What the driver asks of the workers."""

    NONE = 0
    STOP = 1
    """Write a checkpoint after the current step, then end."""
    ABORT = 2
    """Store the stacks and end now."""


@dataclass(frozen=True)
class Phase:
    """What the workers are doing when it is not a step."""

    name: str


@dataclass(frozen=True)
class Warned:
    """What the user is to know of the workers, as a sentence."""

    what: str


@dataclass(frozen=True)
class Ended:
    """Rank 0 has ended without a failure.

    finished: the adapter and checks.json are staged. interrupted: the driver asked for it. evicted: a worker was asked
    to go (SIGTERM). `step` is the newest checkpoint's.
    """

    how: Literal["finished", "interrupted", "evicted"]
    step: int


Message = Event | Phase | Warned | Ended


class Sink(Protocol):
    """A worker's line to the driver."""

    def push(self, message: Message) -> None:
        """Hand over a message without waiting."""

    def request(self) -> Request:
        """The driver's newest request, without waiting."""
