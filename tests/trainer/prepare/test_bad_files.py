"""A file that cannot be read says where and why; all problems of all files are told at once, and counted."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from support.bad_data import GOOD, SECRET, lines, refusal
from support.prepared import DataJob


@pytest.fixture
def job(small_job: DataJob) -> DataJob:
    """What is tested here does not depend on the tokenizer."""
    return small_job


@pytest.mark.parametrize("data", [b"", b"\n \n"])
def test_an_empty_file(job: DataJob, data: bytes) -> None:
    job.write([GOOD], "a.jsonl")
    message = refusal(job, data, "b.jsonl")
    assert "b.jsonl: found " in message
    assert "expected at least one row. Write rows into the file or remove it." in message


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_no_rows_at_all(job: DataJob, name: str) -> None:
    assert "expected at least one row" in refusal(job, b"[]" if name == "a.json" else b"", name)


def test_an_array_that_is_cut_short(job: DataJob) -> None:
    data = json.dumps([GOOD, GOOD], indent=1).encode()
    message = refusal(job, data[: len(data) // 2 + 20], "a.json")
    assert "a.json, line 1" in message
    assert "text that is not JSON" in message


@pytest.mark.parametrize("good_rows", [1, 3000])
def test_an_array_that_is_not_utf8(job: DataJob, good_rows: int) -> None:
    text = json.dumps([GOOD] * good_rows + [{"text": "ä"}], indent=1, ensure_ascii=False)
    bad_line = text.count("\n", 0, text.index("ä")) + 1
    message = refusal(job, text.encode("latin-1"), "a.json")
    assert f"a.json, line {bad_line}: found bytes that are not UTF-8, expected text in UTF-8." in message


ARRAYS = {
    "text after the end": (b"[%s]\n\nmore", "line 3: found text after the array's end, expected the end of the file."),
    "a missing comma": (b"[%s\n%s]", "line 2: found other text, expected a comma or the array's end."),
    "no end": (b"[%s", "line 1: found the end of the file, expected a comma or the array's end."),
    "no array": (b'"%s"', "line 1: found other text, expected a JSON array, or one JSON object a line."),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_an_array_that_is_none(job: DataJob, case: str) -> None:
    data, expected = ARRAYS[case]
    assert f"a.json, {expected}" in refusal(job, data.replace(b"%s", json.dumps(GOOD).encode()), "a.json")


def test_a_row_that_never_ends(job: DataJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister_trainer.prepare.readers.lines.ROW_BYTES_LIMIT", 2 << 20)
    message = refusal(job, lines({"messages": SECRET * 400_000}))
    assert "train.jsonl, line 2: found a row longer than 2 MiB, expected one JSON object a line." in message


def test_an_array_with_a_row_that_is_no_object(job: DataJob) -> None:
    message = refusal(job, json.dumps([GOOD, SECRET], indent=1).encode(), "a.json")
    assert "a.json, line 14 (row 2): found a string, expected an object with one key a column." in message


def test_parquet_that_is_none(job: DataJob) -> None:
    message = refusal(job, b"PAR1" + SECRET.encode(), "a.parquet")
    assert "a.parquet: found bytes that are not Parquet (ArrowInvalid), expected a Parquet file." in message


def test_parquet_with_a_wrong_type(job: DataJob) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"prompt": [SECRET, SECRET], "completion": [1, 2]}), sink)
    message = refusal(job, sink.getvalue(), "a.parquet")
    assert "a.parquet, row 1, completion: found a number, expected a string, as the prompt is one." in message


def test_the_first_twenty_of_many_problems_are_told_and_all_are_counted(job: DataJob) -> None:
    job.write([GOOD] + [{"messages": []}] * 10, "a.jsonl")
    message = refusal(job, lines(*[{"messages": 3}] * 25), "b.jsonl")
    assert message.startswith("The dataset has 35 problems; the first 20:\n- a.jsonl, line 2, messages: found an empty")
    assert message.count("\n- ") == 20
    assert "- b.jsonl, line 11, messages: found a number" in message
    assert "line 12" not in message


def test_all_problems_are_counted_where_no_row_can_be_read(job: DataJob) -> None:
    job.write_bytes(b"", "a.jsonl")
    job.write_bytes(b"\n", "b.jsonl")
    message = refusal(job, f"{SECRET}\n".encode() * 500, "c.jsonl")
    assert message.startswith("The dataset has 502 problems; the first 20:\n- a.jsonl: found an empty file")
    assert "- b.jsonl: found no row, expected at least one row" in message
    assert "- c.jsonl, line 18: found text that is not JSON" in message


def test_a_first_file_without_rows_hides_no_problem(job: DataJob) -> None:
    job.write_bytes(b"", "a.jsonl")
    message = refusal(job, lines({"messages": 3}), "b.jsonl")
    assert message.startswith("The dataset has 2 problems:\n- a.jsonl: found an empty file")
    assert "- b.jsonl, line 2, messages: found a number" in message


def test_problems_are_the_same_with_several_processes(job: DataJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister_trainer.prepare.readers.lines.CHUNK_BYTES", 1 << 10)
    job.write([GOOD, {"messages": 3}, *[GOOD] * 100, {"messages": 3}])
    messages = []
    for processes in (1, 2):
        with pytest.raises(CloisterError) as raised:
            job.prepare(processes=processes)
        messages.append(raised.value.message)
    assert messages[0] == messages[1]
    assert "line 103" in messages[0]


def test_no_dataset_there(job: DataJob) -> None:
    with pytest.raises(CloisterError, match=r"There is no .jsonl, .json or .parquet file at file://") as raised:
        job.prepare()
    assert raised.value.reason is FailureReason.DATASET_NOT_FOUND


def test_files_of_other_kinds_are_not_taken_for_data(job: DataJob) -> None:
    job.write_bytes(b"hello", "README.md")
    with pytest.raises(CloisterError, match=r"\(1 file with another ending\)"):
        job.prepare()
