"""The run's metrics: parts uploaded at checkpoints, joined into one line a step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cloister_api.run import Run
from cloister_trainer.storage import Storage


def read_metrics(run: Run, storage: Storage, last_step: int) -> list[dict[str, Any]]:
    """One record per step up to `last_step`, ascending.

    A resumed run writes steps again that an attempt wrote after its last checkpoint; of two records of a step the one
    written later counts.
    """
    newest: dict[int, dict[str, Any]] = {}
    for part in storage.list(run.layout.metrics):
        for line in storage.read(part.uri).splitlines():
            record = json.loads(line)
            step = record["step"]
            if step <= last_step and (step not in newest or record["time"] >= newest[step]["time"]):
                newest[step] = record
    return [newest[step] for step in sorted(newest)]


def encode_metrics(metrics: Sequence[dict[str, Any]]) -> bytes:
    """metrics.jsonl: one JSON object a line."""
    return "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in metrics).encode()


def first_and_last_time(metrics: Sequence[dict[str, Any]]) -> tuple[str | None, str | None]:
    """When the first and the last step were made."""
    return (str(metrics[0]["time"]), str(metrics[-1]["time"])) if metrics else (None, None)
