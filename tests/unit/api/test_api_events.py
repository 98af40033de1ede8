"""Event lines: whatever an event holds, its line is short, whole and readable; nothing else is taken for one."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from cloister_api.events import (
    MAX_BYTES,
    CheckpointSaved,
    Done,
    EvaluationDone,
    Event,
    FailureSeen,
    Progress,
    Restarted,
    format_event,
    parse_event,
)
from cloister_api.reasons import FailureReason

UID = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"
TIME = datetime(2024, 5, 1, 12, 30, tzinfo=UTC)
PROGRESS = Progress(
    step=3, total_steps=10, epoch=0.3, loss=1.25, learning_rate=2e-4, tokens_per_second=811.5, eta_seconds=70
)
EVENTS: list[Event] = [
    PROGRESS,
    EvaluationDone(step=3, loss=1.1, base_loss=2.2),
    CheckpointSaved(step=3, uri="s3://runs/x/checkpoints/step-000003"),
    Restarted(workers=3, reason="a worker was lost"),
    FailureSeen(reason=FailureReason.NODE_LOST, message="Node gpu-7 went away.", step=3, node="gpu-7"),
    Done(step=10, staged_uri="s3://runs/x/adapter"),
]
FIELDS = {
    "progress": ["step", "totalSteps", "epoch", "loss", "learningRate", "tokensPerSecond", "etaSeconds"],
    "evaluation": ["step", "loss", "baseLoss"],
    "checkpoint": ["step", "uri"],
    "restart": ["workers", "reason"],
    "failure": ["reason", "message", "step", "node"],
    "done": ["step", "stagedUri"],
}


def line_of(event: Event) -> str:
    return format_event(UID, 2, TIME, event)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.event)
def test_a_line_reads_back_as_its_event(event: Event) -> None:
    assert parse_event(line_of(event), UID, 2) == event


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.event)
def test_a_line_has_the_design_s_fields_in_order(event: Event) -> None:
    assert list(json.loads(line_of(event))) == ["cloister", "time", "event", *FIELDS[event.event]]
    assert line_of(event).startswith(f'{{"cloister":"{UID}/2","time":"2024-05-01T12:30:00.000+00:00","event":')


def test_whatever_texts_hold_the_line_is_short_and_whole() -> None:
    chance = random.Random(7)
    alphabet = ['"', "\\", "\n", "\r", "\0", "\x1b", "\u2028", "\ud800", "é", "𝄞", "a", " ", "{", "\x85"]
    for _ in range(300):
        texts = ["".join(chance.choices(alphabet, k=chance.choice([0, 10, 700, 5000]))) for _ in range(2)]
        event = FailureSeen(
            reason=FailureReason.INTERNAL, message=texts[0], step=1, node=texts[1].replace("\ud800", "")[:253]
        )
        line = line_of(event)
        assert len(line.encode()) <= MAX_BYTES
        assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in line)
        assert "\u2028" not in line
        read = parse_event(line, UID, 2)
        assert isinstance(read, FailureSeen)
        assert (read.reason, read.step) == (FailureReason.INTERNAL, 1)


def test_a_long_message_is_cut_and_the_rest_stays() -> None:
    event = FailureSeen(reason=FailureReason.OUT_OF_MEMORY, message="x" * 100_000, step=7, node="gpu-1")
    read = parse_event(line_of(event), UID, 2)
    assert isinstance(read, FailureSeen)
    assert 1500 < len(read.message) < MAX_BYTES
    assert (read.reason, read.step, read.node) == (FailureReason.OUT_OF_MEMORY, 7, "gpu-1")


def test_numbers_that_are_not_finite_make_no_event() -> None:
    with pytest.raises(ValidationError):
        EvaluationDone(step=1, loss=float("nan"), base_loss=1.0)


LINE = line_of(PROGRESS)
FORGED = {
    "plain text": "step 3 of 10",
    "an empty line": "",
    "another run": LINE.replace(UID, UID.replace("1", "2")),
    "another attempt": LINE.replace(f"{UID}/2", f"{UID}/1"),
    "the mark not first": json.dumps({"event": "done", "cloister": f"{UID}/2"}),
    "something before it": " " + LINE,
    "something after it": LINE + " x",
    "spaces as json.dumps puts them": json.dumps(json.loads(LINE)),
    "no time": LINE.replace('"time":"2024-05-01T12:30:00.000+00:00",', ""),
    "a time without a zone": LINE.replace("+00:00", ""),
    "no time at all in time": LINE.replace("2024-05-01T12:30:00.000+00:00", "now"),
    "an unknown event": LINE.replace('"progress"', '"success"'),
    "an unknown field": LINE.replace('"step":3', '"step":3,"extra":1'),
    "a missing field": LINE.replace('"step":3,', ""),
    "a field twice": LINE.replace('"step":3', '"step":3,"step":4'),
    "the mark twice": LINE.replace('"step":3', f'"cloister":"{UID}/2","step":3'),
    "a number as text": LINE.replace('"step":3', '"step":"3"'),
    "a boolean as a number": LINE.replace('"step":3', '"step":true'),
    "a fraction of a step": LINE.replace('"step":3', '"step":3.5'),
    "a negative step": LINE.replace('"step":3', '"step":-3'),
    "an enormous number": LINE.replace('"step":3', f'"step":{"9" * 1500}'),
    "not a number": LINE.replace('"loss":1.25', '"loss":NaN'),
    "infinite": LINE.replace('"loss":1.25', '"loss":1e999'),
    "null": LINE.replace('"loss":1.25', '"loss":null'),
    "a field in Python's writing": LINE.replace("totalSteps", "total_steps"),
    "deeply nested": LINE.replace('"loss":1.25', '"loss":' + "[" * 1500),
    "half a surrogate pair": LINE.replace('"progress"', '"\ud800"'),
    "an unknown reason": line_of(EVENTS[4]).replace("NodeLost", "Lost"),
    "too long": LINE[:-1] + " " * MAX_BYTES + "}",
    "too long in bytes only": line_of(EVENTS[4]).replace("Node gpu-7 went away.", "é" * 1500),
    "a list": f"[{LINE}]",
}


@pytest.mark.parametrize("line", FORGED.values(), ids=FORGED)
def test_no_other_line_is_taken_for_an_event(line: str) -> None:
    assert line != LINE
    assert parse_event(line, UID, 2) is None
