"""Rows, files and tokenizers that one tool writes and another cannot take: read, or answered with a sentence."""

from __future__ import annotations

import io
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_trainer.prepare.detect import PROBED_ROWS
from cloister_trainer.prepare.readers.parquet import BATCH_ROWS
from support.prepared import DataJob, Prepared, chat, make_tokenizer, template

SECRET = "Zanzibar"
GOOD = chat(f"{SECRET}?", f"{SECRET}!")
HUGE = "9" * 5000
TOOL = {"type": "function", "function": {"name": "look_up", "description": "Finds a harbour", "parameters": {}}}


def parquet(table: pa.Table, **options: Any) -> bytes:
    """A table as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def strings(*values: bytes) -> pa.Array:
    """A column that says it holds UTF-8, with these bytes in it."""
    return pa.array(values, pa.binary()).view(pa.string())


def refusal(job: DataJob, data: bytes, name: str) -> str:
    """The sentences with which a dataset is refused; no content is told."""
    job.write_bytes(data, name)
    with pytest.raises(CloisterError) as raised:
        job.prepare()
    assert raised.value.reason is FailureReason.DATASET_INVALID
    assert SECRET not in raised.value.message
    return raised.value.message.replace(f"file://{job.folder}/data/", "")


def texts(job: DataJob, prepared: Prepared) -> list[str]:
    """Every example as text."""
    tokenizer = job.tokenizer()
    return [tokenizer.decode(example.tokens) for example in prepared.examples()]


LATE_COLUMNS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "input": ({"instruction": "Say it", "output": "Yes"}, {"input": "in Danish"}, "in Danish"),
    "Alpaca's system": ({"instruction": "Say it", "output": "Yes"}, {"system": "Be a pirate"}, "Be a pirate"),
    "ShareGPT's system": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
        {"system": "Be a pirate"},
        "Be a pirate",
    ),
    "tools": (chat("Hi", "Ho"), {"tools": [TOOL]}, "Finds a harbour"),
}


@pytest.mark.parametrize("case", LATE_COLUMNS)
def test_an_optional_column_that_only_a_late_row_has(job: DataJob, case: str) -> None:
    row, late, expected = LATE_COLUMNS[case]
    if case == "tools":
        folder = make_tokenizer(job.tokenizer_folder, job.folder / "tokenizer", template("qwen3"))
        job = DataJob(job.folder, folder)
    job.write([row] * PROBED_ROWS + [row | late])
    prepared = job.prepare({"deduplicate": False})
    examples = texts(job, prepared)
    assert len(examples) == PROBED_ROWS + 1
    assert [expected in text for text in examples] == [False] * PROBED_ROWS + [True]
    [source] = prepared.index.report["sources"]
    assert not late.keys() & source["columns"].keys(), "only what the first rows have is told"


def test_a_damaged_parquet_page_is_told_with_its_file(job: DataJob) -> None:
    table = pa.table({"text": [f"{SECRET} {number}" for number in range(2000)]})
    data = bytearray(parquet(table, compression="snappy", use_dictionary=False, row_group_size=1000))
    page = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(1).column(0)
    start, size = page.data_page_offset, page.total_compressed_size
    data[start : start + size] = b"\xff" * size
    message = refusal(job, bytes(data), "a.parquet")
    assert "a.parquet, after row " in message
    assert "found bytes that are not Parquet (OSError), expected a Parquet file." in message


def test_parquet_text_that_is_not_utf8_is_told_with_its_row(job: DataJob) -> None:
    good, bad = SECRET.encode(), b"\xff\xfe"
    column = strings(*[good] * BATCH_ROWS, good, bad, good)
    message = refusal(job, parquet(pa.table({"text": column})), "a.parquet")
    assert message == (
        f"The dataset has a problem:\n- a.parquet, row {BATCH_ROWS + 2}, text: found text that is not UTF-8, "
        "expected a string. Correct the row or remove it."
    )


def test_a_parquet_column_that_nothing_reads_may_hold_anything(job: DataJob) -> None:
    never = pa.array([2**60], pa.int64()).view(pa.timestamp("ms"))
    job.write_bytes(parquet(pa.table({"text": ["Hi"], "source": strings(b"\xff"), "when": never})), "a.parquet")
    [text] = texts(job, job.prepare())
    assert text.startswith("Hi")


def test_a_parquet_column_name_that_is_not_utf8(job: DataJob) -> None:
    data = parquet(pa.table({"text": ["Hi"], "zzzz": ["b"]}), store_schema=False).replace(b"zzzz", b"zz\xff\xff")
    assert "a.parquet: found a column name that is not UTF-8, expected names in UTF-8." in refusal(
        job, data, "a.parquet"
    )


@pytest.mark.parametrize(
    ("value", "found"),
    [(datetime(2024, 1, 1, tzinfo=UTC), "a value of type datetime"), (b"\x00", "binary data")],
)
def test_a_key_of_a_message_that_json_has_no_form_of(job: DataJob, value: Any, found: str) -> None:
    turns = [{"role": "user", "content": SECRET}, {"role": "assistant", "content": SECRET, "extra": value}]
    message = refusal(job, parquet(pa.table({"messages": [turns]})), "a.parquet")
    assert f"a.parquet, row 1, messages[1].extra: found {found}, expected a string, a number" in message
    assert "Write it as a string or a number, or remove the key." in message


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_number_with_thousands_of_digits(job: DataJob, name: str) -> None:
    bad = json.dumps(GOOD)[:-1] + f', "id": {HUGE}}}'
    good = json.dumps(GOOD)
    data = f"[{good},\n{bad}]" if name == "a.json" else f"{good}\n{bad}\n"
    message = refusal(job, data.encode(), name)
    assert f"{name}, line 2: found a number with thousands of digits, expected numbers that fit 64 bits" in message


def test_column_names_that_are_no_text(small_job: DataJob) -> None:
    odd = b'"\\ud800": 1'
    small_job.write_bytes(b'{"text": "Hi", ' + odd + b"}\n")
    prepared = small_job.prepare()
    assert "columns left out: \\ud800." in prepared.said
    assert prepared.index.report["sources"][0]["columnsLeftOut"] == ["\\ud800"]
    message = refusal(small_job, b'{"text": "Hi"}\n{' + odd + b"}\n", "train.jsonl")
    assert "line 2 has other columns (\\ud800)" in message
    message.encode()


@pytest.mark.parametrize("tools", ["[" * 100_000, f"[{HUGE}]"])
def test_tools_in_a_string_that_no_parser_takes(job: DataJob, tools: str) -> None:
    message = refusal(job, json.dumps(GOOD | {"tools": tools}).encode(), "a.jsonl")
    assert "line 1, tools: found a string that is not JSON, expected a list of tool definitions" in message


def with_unknown_type(model: dict[str, Any]) -> None:
    model["type"] = "Zanzibar"


def with_bad_merges(model: dict[str, Any]) -> None:
    model["merges"] = [["no such token", "nor this"]]


def with_hardly_a_letter(model: dict[str, Any]) -> None:
    model.update(vocab={"b": 0}, merges=[])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (with_unknown_type, "the tokenizer cannot be loaded"),
        (with_bad_merges, "the tokenizer cannot be loaded"),
        (with_hardly_a_letter, r"the tokenizer, which transformers loads as \w+, drops text"),
    ],
)
def test_a_tokenizer_that_the_library_cannot_use(job: DataJob, tmp_path: Path, spoil: Any, told: str) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(job.tokenizer_folder, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    spoil(content["model"])
    (folder / "tokenizer.json").write_text(json.dumps(content))
    job.write([GOOD])
    with pytest.raises(CloisterError, match=told) as raised:
        DataJob(job.folder, folder).prepare()
    assert raised.value.reason is FailureReason.MODEL_UNSUPPORTED
