"""Rows that are right, and yet nothing is trained: too long, held out, or without a token that carries loss."""

from __future__ import annotations

import pytest

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from support.bad_data import GOOD, SECRET, refusal
from support.prepared import DataJob, chat


@pytest.fixture
def job(small_job: DataJob) -> DataJob:
    """What is tested here does not depend on the tokenizer."""
    return small_job


def test_a_row_without_a_token_to_train(job: DataJob) -> None:
    message = refusal(job, b'{"text": "Zanzibar"}\n{"text": "<|im_end|>"}\n')
    assert "train.jsonl, line 2: found no trainable token, expected at least one token that carries loss." in message


def test_all_rows_too_long(job: DataJob) -> None:
    job.write([chat(SECRET, SECRET * 50)])
    with pytest.raises(CloisterError) as raised:
        job.prepare({"tooLong": "Drop"}, training={"maxLength": 40})
    assert "All training rows are too long: each of them has more than 40 tokens, the shortest" in raised.value.message
    assert "Raise training.maxLength, or set dataset.tooLong to Truncate." in raised.value.message
    assert not list(job.folder.glob("out/**/*.*"))


def test_all_training_rows_too_long_beside_short_validation_rows(job: DataJob) -> None:
    train = job.write([chat(SECRET, SECRET * 50), chat(SECRET, SECRET * 30)])
    validation = job.write([chat("Hi", "Ho")], "validation.jsonl")
    with pytest.raises(CloisterError) as raised:
        job.prepare({"uri": train, "tooLong": "Drop", "validation": {"uri": validation}}, training={"maxLength": 80})
    shortest = int(raised.value.message.partition("the shortest ")[2].partition(".")[0])
    assert 30 * len(SECRET) < shortest < 50 * len(SECRET)


def test_too_long_validation_rows_are_not_blamed_when_nothing_is_trained(job: DataJob) -> None:
    train = job.write([GOOD])
    validation = job.write([chat(SECRET, SECRET * 50)], "validation.jsonl")
    with pytest.raises(CloisterError, match="No row is left to train"):
        job.prepare(
            {
                "sources": [{"uri": train, "weight": 0.000001}],
                "tooLong": "Drop",
                "validation": {"uri": validation},
            },
            training={"maxLength": 80},
        )


def test_too_long_rows_that_are_not_allowed(job: DataJob) -> None:
    job.write([GOOD, chat(SECRET, SECRET * 50)])
    with pytest.raises(CloisterError) as raised:
        job.prepare({"tooLong": "Fail"}, training={"maxLength": 80})
    assert "line 2: found an example of " in raised.value.message
    assert "expected at most 80 (training.maxLength)" in raised.value.message
    assert not list(job.folder.glob("out/**/*.*"))


def test_a_system_prompt_for_plain_text(job: DataJob) -> None:
    job.write([{"text": SECRET}])
    with pytest.raises(CloisterError, match=r"Remove dataset\.systemPrompt"):
        job.prepare({"systemPrompt": "Be brief"})


def test_a_length_above_the_models(job: DataJob) -> None:
    job.write([GOOD])
    with pytest.raises(CloisterError, match=r"the model.s configuration allows 2048 tokens") as raised:
        job.prepare(training={"maxLength": 4096})
    assert raised.value.reason is FailureReason.SPEC_INVALID


def test_everything_held_out(job: DataJob) -> None:
    uri = job.write([GOOD])
    with pytest.raises(CloisterError, match="No row is left to train"):
        job.prepare({"sources": [{"uri": uri, "weight": 0.000001}], "validation": {"fraction": 0}})
