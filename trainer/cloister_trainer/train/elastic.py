"""How many workers a start gets: all of them, or fewer while the others stay away (distribution.minWorkers)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from cloister_api.spec_cluster import Distribution
from cloister_trainer.train.launch import RAY_ADDRESS
from cloister_trainer.train.nodes import Node, ask_nodes, is_there, living_nodes, workers_on
from cloister_trainer.train.ray_errors import lost_with_ray

WORKERS_PATIENCE_S = 120.0
"""How long a start waits for the others after a worker has gone or come."""
GROW_AFTER_S = 300.0
"""How long more workers have to be there before a start ends for a larger one."""
LOOK_INTERVAL_S = 5.0


@dataclass(frozen=True)
class Presence:
    """How the driver counts whole workers, and how it waits."""

    listed: Callable[[], int]
    """Workers that Ray holds to be alive: known at once, and out of date for a while."""
    answering: Callable[[], int]
    """Workers that answer; takes as long as the slowest."""
    pause: Callable[[float], None]
    """Waits for so many seconds; may raise to end the waiting."""
    say: Callable[[str], None]


class Workers:
    """Decides on the size of each start. With `fewest` equal to `wanted` it is always that."""

    def __init__(self, wanted: int, fewest: int, presence: Presence) -> None:
        self._wanted, self._fewest, self._presence = wanted, fewest, presence
        self.elastic = fewest < wanted
        self._size = self._present = wanted
        """Of the newest start, and when last counted."""
        self._most = self._proven = wanted
        """That the next start may have, and that the newest start with a checkpoint had."""
        self._grow_after_s = GROW_AFTER_S
        self._changed_at = self._looked_at = time.monotonic()
        self._begun = False

    def for_next_start(self) -> int:
        """All workers as soon as they are there; else at least `fewest`, once nothing has changed for a while."""
        if not self.elastic:
            return self._wanted
        if self._begun:
            self._presence.pause(LOOK_INTERVAL_S)  # a worker that goes still answers for a moment
        self._begun = True
        told = None
        while not self._settled(self._presence.answering()):
            if told != self._present:
                told = self._present
                self._presence.say(f"{self._present} of {self._wanted} workers are there: {self._what_for()}.")
            self._presence.pause(LOOK_INTERVAL_S)
        self._size = min(self._present, self._most)
        if self._size < self._wanted:
            self._presence.say(f"Training goes on with {self._size} of {self._wanted} workers.")
        return self._size

    def may_grow(self) -> bool:
        """Whether there have been more workers than the running start's for GROW_AFTER_S. Looks now and then."""
        now = time.monotonic()
        if not self.elastic or now - self._looked_at < LOOK_INTERVAL_S:
            return False
        self._looked_at = now
        self._note(self._presence.listed())
        if not self._growth_is_due():
            return False
        self._note(self._presence.answering())
        if not self._growth_is_due():
            return False
        self._most = self._wanted
        return True

    @property
    def grew(self) -> bool:
        """Whether the newest start is larger than the one that last made a checkpoint."""
        return self._size > self._proven

    def proved(self) -> None:
        """The newest start has made a checkpoint."""
        self._proven = self._size

    def grew_in_vain(self) -> None:
        """The larger start has failed: the next one is as large as before, and those after it grow half as soon."""
        self._most = self._proven
        self._grow_after_s *= 2
        self._changed_at = time.monotonic()

    def _growth_is_due(self) -> bool:
        return self._present > self._size and time.monotonic() - self._changed_at >= self._grow_after_s

    def _settled(self, count: int) -> bool:
        self._note(count)
        if self._present < self._fewest:
            return False
        return self._present >= self._most or time.monotonic() - self._changed_at >= WORKERS_PATIENCE_S

    def _what_for(self) -> str:
        if self._present < self._fewest:
            return f"waiting for {self._fewest} at least"
        return f"waiting for the others, at most {WORKERS_PATIENCE_S:.0f} s after the last change"

    def _note(self, count: int) -> None:
        present = min(self._wanted, count)
        if present != self._present:
            self._present, self._changed_at = present, time.monotonic()


def workers_of(where: Distribution, pause: Callable[[float], None], say: Callable[[str], None]) -> Workers:
    """Workers that are counted in the Ray that RAY_ADDRESS names. A Ray of our own is one node, whole or gone."""

    def count(node: Node) -> int:
        return workers_on(node, where.gpus_per_worker)

    def listed() -> int:
        with lost_with_ray():
            return sum(count(node) for node in living_nodes())

    def answering() -> int:
        with lost_with_ray():
            asked = [node for node in living_nodes() if count(node)]
            return sum(count(node) for node, _ in ask_nodes(asked, is_there))

    fewest = where.min_workers if os.environ.get(RAY_ADDRESS) else None
    return Workers(where.workers, fewest or where.workers, Presence(listed, answering, pause, say))
