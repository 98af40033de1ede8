"""What was refused, as the kernel logged it: who tried to reach whom."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from e2e.cluster.network import GUARD_PREFIX
from e2e.cluster.rules import LOG_PREFIX

LINE = re.compile(
    rf"(?P<prefix>{LOG_PREFIX}|{GUARD_PREFIX})IN=.* SRC=(?P<source>\S+) DST=(?P<target>\S+) .*PROTO=(?P<protocol>\S+)"
    r"(?: SPT=\d+ DPT=(?P<port>\d+))?"
)


@dataclass(frozen=True)
class Refusal:
    """One packet that was dropped. Ends are `namespace/pod`, or the address where no pod has it."""

    source: str
    target: str
    protocol: str
    port: int | None
    would_leave: bool
    """Dropped because it would have left this machine, whatever the policies say."""


class RefusalLog:
    """Reads the kernel's log from now on."""

    def __init__(self) -> None:
        self._log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self._log, 0, os.SEEK_END)
        self._names: dict[str, str] = {}
        self._found: list[Refusal] = []
        self._lock = threading.Lock()

    def close(self) -> None:
        """Read no more. May be called twice."""
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def know(self, names: Mapping[str, str]) -> None:
        """Read what there is, under the names known so far, and learn whose addresses are whose from now on."""
        self.read()
        self._names.update(names)

    def read(self) -> list[Refusal]:
        """All refusals since the start."""
        with self._lock:
            while (line := self._next()) is not None:
                if found := LINE.search(line):
                    self._found.append(self._refusal(found))
            return list(self._found)

    def _next(self) -> str | None:
        """The next record, which one read returns; None when there is none yet."""
        if self._log < 0:
            return None
        try:
            return os.read(self._log, 8192).decode(errors="replace")
        except BlockingIOError:
            return None
        except BrokenPipeError:  # records were overwritten before we read them; go on with the next
            return ""

    def _refusal(self, found: re.Match[str]) -> Refusal:
        source, target = (self._names.get(found[end], found[end]) for end in ("source", "target"))
        port = int(found["port"]) if found["port"] else None
        return Refusal(source, target, found["protocol"], port, found["prefix"] == GUARD_PREFIX)
