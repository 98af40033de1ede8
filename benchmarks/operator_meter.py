"""What the operator's process costs: its CPU time and memory from /proc, its calls and passes from its own metrics."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import urllib3
from prometheus_client.parser import text_string_to_metric_families

from support.child_process import Program

MB = 1_000_000


@dataclass(frozen=True)
class Reading:
    """Everything since the process started; of a difference, between two moments."""

    cpu_seconds: float
    calls: Counter[str]
    """API calls by verb and kind; kopf's own lists and watches are not among them."""
    looks: int
    """Passes over jobs."""
    failed: int
    """Passes that are tried again."""
    due: int
    """Jobs that are due to be looked at."""

    def since(self, before: Reading) -> Reading:
        """What was added since an earlier reading."""
        calls = Counter(self.calls)
        calls.subtract(before.calls)
        seconds = self.cpu_seconds - before.cpu_seconds
        return Reading(seconds, +calls, self.looks - before.looks, self.failed - before.failed, self.due)


class Meter:
    """Reads one operator process, also after it was started again."""

    def __init__(self, program: Program) -> None:
        self._program = program
        (port,) = re.findall(r"--metrics-port=(\d+)", " ".join(program.command))
        self._url = f"http://127.0.0.1:{port}/metrics"
        self._pool = urllib3.PoolManager(retries=False)

    def read(self) -> Reading | None:
        """The reading now; None while the process answers nothing yet."""
        try:
            text = self._pool.request("GET", self._url, timeout=10.0).data.decode()
        except urllib3.exceptions.HTTPError:
            return None
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        values = {sample.name: sample.value for sample in samples if not sample.labels}
        calls = {
            f"{sample.labels['verb']} {sample.labels['kind']}": int(sample.value)
            for sample in samples
            if sample.name == "cloister_api_calls_total"
        }
        failed = sum(sample.value for sample in samples if sample.name == "cloister_reconcile_errors_total")
        return Reading(
            cpu_seconds=self._cpu_seconds(),
            calls=Counter(calls),
            looks=int(values["cloister_reconcile_seconds_count"]),
            failed=int(failed),
            due=int(values["cloister_queue_depth"]),
        )

    def has_looked_at(self, jobs: int) -> bool:
        """Whether a process that was just started has looked at each of so many jobs.

        It puts every job that it lists on its queue before the first pass, so each was taken once none is due.
        """
        now = self.read()
        return now is not None and now.looks >= jobs and now.due == 0

    def resident_mb(self) -> float:
        """Resident memory now."""
        return self._memory("VmRSS")

    def highest_mb(self) -> float:
        """The most resident memory since the process started."""
        return self._memory("VmHWM")

    def _memory(self, name: str) -> float:
        status = Path(f"/proc/{self._program.pid}/status").read_text()
        (kibibytes,) = re.findall(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
        return int(kibibytes) * 1024 / MB

    def _cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._program.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
