"""Termination messages: always whole JSON below the kubelet's limit, whatever a step wants to say."""

from __future__ import annotations

import json

import pytest

from cloister_api.reasons import FailureReason
from cloister_api.termination import MAX_BYTES, Outcome, TerminationMessage, parse_termination


def test_what_fits_is_kept_as_it_is() -> None:
    message = TerminationMessage(outcome=Outcome.SUCCEEDED, result={"plan": {"zeroStage": 2, "warnings": ["x"]}})
    assert json.loads(message.encode()) == {
        "version": 1,
        "outcome": "Succeeded",
        "message": "",
        "result": {"plan": {"zeroStage": 2, "warnings": ["x"]}},
    }
    assert parse_termination(message.encode()) == message


def test_a_refusal_reads_back() -> None:
    message = TerminationMessage(outcome=Outcome.REFUSED, reason=FailureReason.DATASET_INVALID, message="a.jsonl:3: …")
    assert parse_termination(message.encode()) == message


@pytest.mark.parametrize(
    "text", ["x" * 100_000, "é" * 5000, '"\\' * 5000, "\0\x1b\ud800" * 5000, "𝄞" * 3000, "a\n" * 4000]
)
def test_a_long_message_is_cut_and_says_so(text: str) -> None:
    encoded = TerminationMessage(outcome=Outcome.FAILED, reason=FailureReason.INTERNAL, message=text).encode()
    assert MAX_BYTES - 100 <= len(encoded.encode()) <= MAX_BYTES
    read = parse_termination(encoded)
    assert read is not None
    assert read.reason == FailureReason.INTERNAL
    assert read.message.endswith("…")


def test_a_result_outlives_a_long_message() -> None:
    result = {"uri": "s3://adapters/x", "digest": "0" * 64}
    read = parse_termination(TerminationMessage(outcome=Outcome.SUCCEEDED, message="x" * 9000, result=result).encode())
    assert read is not None
    assert read.result == result
    assert len(read.message) > 500


def test_long_lists_in_a_result_lose_their_ends_first() -> None:
    warnings = [f"warning {number} " + "w" * 80 for number in range(500)]
    result = {"plan": {"totalSteps": 7, "warnings": warnings}}
    encoded = TerminationMessage(outcome=Outcome.SUCCEEDED, message="m" * 300, result=result).encode()
    assert len(encoded.encode()) <= MAX_BYTES
    read = parse_termination(encoded)
    assert read is not None
    assert read.result is not None
    assert read.message == "m" * 300
    assert read.result["plan"]["totalSteps"] == 7
    kept = read.result["plan"]["warnings"]
    assert kept == warnings[: len(kept)]
    assert len(kept) > 15


def test_a_result_that_cannot_fit_is_left_out_and_the_message_stays() -> None:
    message = TerminationMessage(outcome=Outcome.SUCCEEDED, message="Done.", result={"text": "y" * 9000})
    read = parse_termination(message.encode())
    assert read == TerminationMessage(outcome=Outcome.SUCCEEDED, message="Done.")


def test_numbers_that_are_not_finite_become_null() -> None:
    message = TerminationMessage(outcome=Outcome.SUCCEEDED, result={"loss": float("nan"), "deep": [float("inf")]})
    assert json.loads(message.encode())["result"] == {"loss": None, "deep": [None]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Killed",
        "[]",
        '{"version":1}',
        '{"version":2,"outcome":"Succeeded"}',
        '{"version":1,"outcome":"Won"}',
        '{"version":1,"outcome":"Succeeded","extra":1}',
        '{"version":1,"outcome":"Failed","reason":"Bad luck"}',
        '{"version":1,"outcome":"Succeeded","message":"\ud800"}',
        '"message":"cut at the head"}',
    ],
)
def test_anything_else_is_no_message(text: str) -> None:
    assert parse_termination(text) is None
