"""Every mistake in a dataset is answered with the file, the place, what was found, what was expected and what to do."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from support.prepared import DataJob, chat

SECRET = "Zanzibar"
GOOD = chat(f"{SECRET}?", f"{SECRET}!")


@pytest.fixture
def job(small_job: DataJob) -> DataJob:
    """What is tested here does not depend on the tokenizer."""
    return small_job


def lines(*rows: Any) -> bytes:
    """Rows as JSON lines, after a good one."""
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in (GOOD, *rows))


def said_with(role: Any, content: Any) -> dict[str, Any]:
    """A conversation with one odd message at its end."""
    return {"messages": [{"role": "user", "content": SECRET}, {"role": role, "content": content}]}


def refusal(job: DataJob, data: bytes, name: str = "train.jsonl", **dataset: Any) -> str:
    """The sentences with which a dataset is refused; nothing is left, and no content is told."""
    job.write_bytes(data, name)
    with pytest.raises(CloisterError) as raised:
        job.prepare(dataset)
    assert raised.value.reason is FailureReason.DATASET_INVALID
    assert SECRET not in raised.value.message
    assert not list(job.folder.glob("out/**/*.*"))
    return raised.value.message.replace(f"file://{job.folder}/data/", "")


JSON_LINES = {
    "not JSON": (
        lines(f'{{"messages": [{SECRET}\n'.encode()),
        "train.jsonl, line 2: found text that is not JSON (Expecting value at character 15), expected one JSON object.",
    ),
    "not UTF-8": (
        lines('{"messages": "Zanzibär"}\n'.encode("latin-1")),
        "train.jsonl, line 2: found bytes that are not UTF-8 (at byte 21 of the line), expected text in UTF-8. "
        "Convert the file to UTF-8.",
    ),
    "a list in place of an object": (
        lines([SECRET]),
        "train.jsonl, line 2: found a list of 1, expected an object with one key a column.",
    ),
    "a missing key": (
        lines({"message": SECRET}),
        "train.jsonl, line 2, messages: found no such key (message instead), expected the column "
        '"messages" of the format Messages. Rows of one source must have one format',
    ),
    "messages as a string": (
        lines({"messages": SECRET}),
        "train.jsonl, line 2, messages: found a string, expected a list of messages",
    ),
    "no messages": (lines({"messages": []}), "line 2, messages: found an empty list, expected a list of messages"),
    "a message as a string": (lines({"messages": [SECRET]}), "line 2, messages[0]: found a string, expected an object"),
    "no role": (
        lines({"messages": [{"content": SECRET}]}),
        "line 2, messages[0].role: found no role, expected one of system, developer, user, assistant, tool",
    ),
    "an unknown role": (
        lines(said_with(SECRET, SECRET)),
        "line 2, messages[1].role: found an unknown role, expected one of system, developer, user, assistant, tool",
    ),
    "a role of another type": (
        lines(said_with(3, SECRET)),
        "line 2, messages[1].role: found a number, expected one of",
    ),  # type: ignore[arg-type]
    "no content": (
        lines({"messages": [{"role": "user"}]}),
        "line 2, messages[0].content: found no content, expected a string, or tool_calls",
    ),
    "a number as content": (
        lines(said_with("assistant", 4)),
        "line 2, messages[1].content: found a number, expected a string",
    ),
    "an empty completion": (
        lines(said_with("assistant", " \n")),
        "line 2, messages[1].content: found an empty completion, expected the text that the model shall learn",
    ),
    "an image": (
        lines(said_with("user", [{"type": "image", "url": SECRET}])),
        "line 2, messages[1].content[0]: found a part that is not text, expected an object with type text",
    ),
    "tool calls that are no list": (
        lines({"messages": [{"role": "assistant", "tool_calls": SECRET}]}),
        "line 2, messages[0].tool_calls: found a string, expected a list of tool calls, each an object.",
    ),
    "a tool call without a name": (
        lines({"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": SECRET}}]}]}),
        "line 2, messages[0].tool_calls[0].function: found an object, expected an object with name and arguments.",
    ),
    "a tool call that is empty": (
        lines({"messages": [{"role": "assistant", "tool_calls": [{}]}]}),
        "line 2, messages[0].tool_calls[0].function: found null, expected an object with name and arguments.",
    ),
    "tools that are none": (
        lines({**GOOD, "tools": SECRET}, {**GOOD, "tools": [SECRET]}),
        "line 2, tools: found a string that is not JSON, expected a list of tool definitions",
    ),
    "no assistant message": (
        lines(said_with("user", SECRET)),
        "line 2: found a row without an assistant message, expected at least one, since only these are trained.",
    ),
    "half a surrogate pair": (
        lines(b'{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "a"}]}\n'),
        "line 2: found half of a surrogate pair",
    ),
    "a mixed format further down": (
        lines(*[GOOD] * 150, {"prompt": SECRET, "completion": SECRET}),
        "line 152, messages: found no such key (prompt, completion instead)",
    ),
}


@pytest.mark.parametrize("case", JSON_LINES)
def test_json_lines(job: DataJob, case: str) -> None:
    data, expected = JSON_LINES[case]
    message = refusal(job, data, format="Messages")
    assert expected in message
    assert message.startswith("The dataset has ")


PROMPTS = {
    "an empty completion": ({"prompt": SECRET, "completion": ""}, "line 1, completion: found an empty completion"),
    "a completion as a list": (
        {"prompt": SECRET, "completion": [SECRET]},
        "line 1, completion: found a list of 1, expected a string, as the prompt is one",
    ),
    "a completion as a string": (
        {"prompt": [{"role": "user", "content": SECRET}], "completion": SECRET},
        "line 1, completion: found a string, expected a list of messages, as the prompt is one",
    ),
    "an empty text": ({"text": "  "}, "line 1, text: found an empty text"),
    "a text of another type": ({"text": {"a": SECRET}}, "line 1, text: found an object, expected a string"),
    "an empty output": ({"instruction": SECRET, "output": ""}, "line 1, output: found an empty completion"),
    "an instruction of another type": (
        {"instruction": None, "output": SECRET},
        "line 1, instruction: found null, expected a string",
    ),
    "an unknown speaker": (
        {"conversations": [{"from": SECRET, "value": SECRET}]},
        "line 1, conversations[0].from: found an unknown role, expected one of system, human, user, gpt",
    ),
    "an empty turn": (
        {"conversations": [{"from": "human", "value": SECRET}, {"from": "gpt", "value": ""}]},
        "line 1, conversations[1].value: found an empty completion",
    ),
    "a function call that is no JSON": (
        {"conversations": [{"from": "function_call", "value": SECRET}]},
        "conversations[0].value: found a string that is no function call, expected JSON with name and arguments.",
    ),
    "a function call without a name": (
        {"conversations": [{"from": "function_call", "value": '{"arguments": {}}'}]},
        "line 1, conversations[0].value: found a string that is no function call",
    ),
    "no value": ({"conversations": [{"from": "human"}]}, "line 1, conversations[0].value: found no value"),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_other_formats(job: DataJob, case: str) -> None:
    row, expected = PROMPTS[case]
    assert expected in refusal(job, json.dumps(row).encode())


def test_columns_that_no_format_has(job: DataJob) -> None:
    message = refusal(job, json.dumps({"question": SECRET, "answer": SECRET}).encode())
    assert "train.jsonl, line 1: the format cannot be told" in message
    assert "found question, answer" in message
    assert "Set dataset.format, and dataset.columns" in message


def test_mixed_formats_among_the_first_rows(job: DataJob) -> None:
    message = refusal(job, lines(b"\n", {"prompt": SECRET, "completion": SECRET}))
    assert "train.jsonl: formats are mixed: line 1 is written as Messages, line 3 as PromptCompletion" in message


def test_columns_of_no_format_after_rows_of_one(job: DataJob) -> None:
    message = refusal(job, json.dumps([GOOD, {"question": SECRET}], indent=1).encode(), "a.json")
    assert "line 1 (row 1)" not in message
    assert "line 2 (row 1) is written as Messages, line 14 (row 2) has other columns (question)" in message


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


def test_no_dataset_there(job: DataJob) -> None:
    with pytest.raises(CloisterError, match=r"There is no .jsonl, .json or .parquet file at file://") as raised:
        job.prepare()
    assert raised.value.reason is FailureReason.DATASET_NOT_FOUND


def test_files_of_other_kinds_are_not_taken_for_data(job: DataJob) -> None:
    job.write_bytes(b"hello", "README.md")
    with pytest.raises(CloisterError, match=r"\(1 file with another ending\)"):
        job.prepare()


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
