"""One row of figures a step, stored in parts: `metrics/from-000121.jsonl` holds the steps up to the next checkpoint."""

from __future__ import annotations

import json
import resource
import threading
from dataclasses import asdict, dataclass

import torch
from pydantic.alias_generators import to_camel

from cloister_api.layout import RunLayout, join
from cloister_trainer.storage import Storage


@dataclass(frozen=True)
class MetricsRow:
    """What is recorded of one step."""

    step: int
    epoch: float
    """Epochs of examples seen after the step."""
    loss: float
    """Mean cross-entropy per label token of the global batch."""
    grad_norm: float
    """Global 2-norm before clipping."""
    learning_rate: float
    tokens_per_second: float
    """Tokens of examples processed, over all ranks."""
    trained_tokens_per_second: float
    """Label tokens, over all ranks."""
    padding_share: float
    """Fraction of the ranks' token slots that no example filled: all wait for the longest micro-batch of a turn."""
    memory_bytes: int
    """Peak memory of rank 0: of its GPU, or of its process on CPUs."""
    time: str
    """When the step's result was known, ISO 8601."""


class MetricsBuffer:
    """Rows since the newest checkpoint that is complete in the store, told by the thread that writes it."""

    def __init__(self, layout: RunLayout, last_stored_step: int) -> None:
        self._layout, self._stored_step = layout, last_stored_step
        self._rows: list[MetricsRow] = []
        self._lock = threading.Lock()

    def add(self, row: MetricsRow) -> None:
        """Keep a row until a checkpoint has stored it."""
        with self._lock:
            self._rows.append(row)

    def part(self) -> tuple[str, bytes]:
        """URI and content of the part that goes with a checkpoint now, none being under way."""
        with self._lock:
            return self._layout.metrics_part(self._stored_step + 1), b"".join(map(_line, self._rows))

    def stored(self, step: int) -> None:
        """The checkpoint of `step` is complete, and the rows up to it with it."""
        with self._lock:
            self._stored_step = step
            self._rows = [row for row in self._rows if row.step > step]


def drop_parts_beyond(storage: Storage, layout: RunLayout, step: int) -> None:
    """Delete the parts of steps after `step`: the run goes on from there and writes them again."""
    for part in storage.list(layout.metrics):
        first = part.name.removeprefix("from-").removesuffix(".jsonl")
        if first.isdecimal() and int(first) > step:
            storage.delete(part.uri)


def take_parts_of(storage: Storage, run_folder: str, layout: RunLayout, step: int) -> None:
    """Copy the figures of steps up to `step` from the run in `run_folder`, which this one goes on from."""
    for part in storage.list(join(run_folder, "metrics")):
        rows = [line for line in storage.read(part.uri).splitlines(keepends=True) if json.loads(line)["step"] <= step]
        if rows:
            storage.write(join(layout.metrics, part.name), b"".join(rows))


def reset_peak_memory(device: torch.device) -> None:
    """Forget what a GPU has held so far; a process's peak on CPUs cannot be forgotten."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory that this process has held: allocated on its GPU, or resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _line(row: MetricsRow) -> bytes:
    return json.dumps({to_camel(key): value for key, value in asdict(row).items()}).encode() + b"\n"
