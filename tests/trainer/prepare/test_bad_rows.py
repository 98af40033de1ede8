"""Every mistake in a row is answered with the file, the place, what was found, what was expected and what to do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.bad_data import GOOD, SECRET, lines, refusal
from support.prepared import DataJob


@pytest.fixture
def job(small_job: DataJob) -> DataJob:
    """What is tested here does not depend on the tokenizer."""
    return small_job


def said_with(role: Any, content: Any) -> dict[str, Any]:
    """A conversation with one odd message at its end."""
    return {"messages": [{"role": "user", "content": SECRET}, {"role": role, "content": content}]}


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
