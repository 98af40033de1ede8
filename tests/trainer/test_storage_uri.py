"""A URI names a place in a store and can never reach out of it."""

from __future__ import annotations

import pytest

from cloister_api.reasons import FailureReason
from cloister_trainer.storage import InvalidUri, open_storage
from cloister_trainer.storage.base import Location, parse_uri


@pytest.mark.parametrize(
    ("uri", "location"),
    [
        ("s3://models/llama/8b", Location("s3", "models", "llama/8b")),
        ("s3://models/llama/8b/", Location("s3", "models", "llama/8b")),
        ("s3://models", Location("s3", "models", "")),
        ("file:///data/train.jsonl", Location("file", "", "data/train.jsonl")),
        ("pvc://weights/llama", Location("pvc", "weights", "llama")),
        ("s3://models/a%20b?c#d e", Location("s3", "models", "a%20b?c#d e")),
    ],
)
def test_the_parts_are_taken_literally(uri: str, location: Location) -> None:
    assert parse_uri(uri) == location
    assert str(location) == uri.rstrip("/")


@pytest.mark.parametrize(
    "uri",
    [
        "models/llama",
        "http://models/llama",
        "hf://org/model",
        "s3:///llama",
        "s3://",
        "file://relative/path",
        "file://",
        "pvc:///path",
        "pvc://Claim_1/path",
        "s3://models/../other",
        "file:///data/./train",
        "pvc://weights/a/../../b",
        "s3://models/a//b",
        "s3://models/a\nb",
    ],
)
def test_what_names_no_place_is_refused_with_the_uri(uri: str) -> None:
    with pytest.raises(InvalidUri) as refused:
        open_storage(environ={}).read(uri)
    assert refused.value.reason is FailureReason.SPEC_INVALID
    assert repr(uri) in refused.value.message


def test_a_password_in_a_uri_is_not_repeated() -> None:
    with pytest.raises(InvalidUri) as refused:
        open_storage(environ={}).list("s3://AKIA123:hunter2@models/llama")
    assert "hunter2" not in str(refused.value)
    assert "models/llama" in str(refused.value)


@pytest.mark.parametrize("uri", ["s3://models", "file:///", "pvc://weights"])
def test_a_whole_store_is_never_deleted(uri: str) -> None:
    with pytest.raises(InvalidUri, match="names no object"):
        open_storage(environ={}).delete_prefix(uri)
