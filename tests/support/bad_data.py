"""Datasets that prepare refuses, and what it says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from support.prepared import DataJob, chat

SECRET = "Zanzibar"
GOOD = chat(f"{SECRET}?", f"{SECRET}!")


def lines(*rows: Any) -> bytes:
    """Rows as JSON lines, after a good one."""
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in (GOOD, *rows))


def refusal(job: DataJob, data: bytes, name: str = "train.jsonl", **dataset: Any) -> str:
    """The sentences with which a dataset is refused; nothing is left, and no content is told."""
    job.write_bytes(data, name)
    with pytest.raises(CloisterError) as raised:
        job.prepare(dataset)
    assert raised.value.reason is FailureReason.DATASET_INVALID
    assert SECRET not in raised.value.message
    assert not list(job.folder.glob("out/**/*.*"))
    return raised.value.message.replace(f"file://{job.folder}/data/", "")
