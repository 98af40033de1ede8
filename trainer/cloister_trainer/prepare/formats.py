"""Turns a row, as its file has it, into its canonical form: one small reader for each format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cloister_api.spec_data import DatasetFormat
from cloister_trainer.prepare.columns import COLUMNS, RowFormat
from cloister_trainer.prepare.messages import read_messages, read_share_gpt, read_text, read_tools
from cloister_trainer.prepare.problems import RowError, name_columns, not_an_object, type_name
from cloister_trainer.prepare.rows import Conversation, Message, PlainText, Row

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
"""Stanford Alpaca's prompts (Taori et al. 2023), for models without a chat template."""


def read_row(row: Any, row_format: RowFormat, has_template: bool) -> Row:
    """The canonical form of a row of this format.

    Prompts and completions that are strings are joined as they are, without the chat template, as TRL does; written
    as lists of messages they go through it. Alpaca rows become a user and an assistant message, or, without a chat
    template, Alpaca's own prompt.

    Raises RowError with the field, the type that was found and what was expected.
    """
    if not isinstance(row, dict):
        raise not_an_object(row)
    for use in COLUMNS[row_format.format]:
        column = row_format.mapping[use.name]
        if use.required and column not in row:
            expected = f'the column "{column}" of the format {row_format.format.value}'
            raise RowError(column, f"no such key ({name_columns(row)} instead)", expected, _MIXED)
    return _READERS[row_format.format](row, row_format.mapping, has_template)


_MIXED = "Rows of one source must have one format: correct the row, or give it its own source in dataset.sources."


def _messages(row: dict[str, Any], columns: dict[str, str], _has_template: bool) -> Row:
    messages = read_messages(row[columns["messages"]], columns["messages"])
    return Conversation(messages, _tools(row, columns))


def _share_gpt(row: dict[str, Any], columns: dict[str, str], _has_template: bool) -> Row:
    messages = read_share_gpt(row[columns["messages"]], columns["messages"])
    return Conversation(_system(row, columns) + messages, _tools(row, columns))


def _prompt_completion(row: dict[str, Any], columns: dict[str, str], _has_template: bool) -> Row:
    prompt, completion = row[columns["prompt"]], row[columns["completion"]]
    if isinstance(prompt, list):
        if not isinstance(completion, list):
            raise RowError(columns["completion"], type_name(completion), "a list of messages, as the prompt is one")
        before = read_messages(prompt, columns["prompt"])
        return Conversation(
            before + read_messages(completion, columns["completion"]), _tools(row, columns), trained_from=len(before)
        )
    if not isinstance(prompt, str):
        raise RowError(columns["prompt"], type_name(prompt), "a string or a list of messages")
    if not isinstance(completion, str):
        raise RowError(columns["completion"], type_name(completion), "a string, as the prompt is one")
    if not completion.strip():
        raise RowError(columns["completion"], "an empty completion", "the text that the model shall learn to write")
    return PlainText(prompt, completion)


def _text(row: dict[str, Any], columns: dict[str, str], _has_template: bool) -> Row:
    text = read_text(row[columns["text"]], columns["text"])
    if not text.strip():
        raise RowError(columns["text"], "an empty text", "the text that the model shall learn to write")
    return PlainText("", text)


def _alpaca(row: dict[str, Any], columns: dict[str, str], has_template: bool) -> Row:
    instruction = read_text(row[columns["instruction"]], columns["instruction"])
    output = read_text(row[columns["output"]], columns["output"])
    if not output.strip():
        raise RowError(columns["output"], "an empty completion", "the text that the model shall learn to write")
    given = row.get(columns["input"])
    given = "" if given is None else read_text(given, columns["input"])
    if not has_template:
        prompt = ALPACA_WITH_INPUT if given.strip() else ALPACA_WITHOUT_INPUT
        return PlainText(prompt.format(instruction=instruction, input=given), output)
    question = f"{instruction}\n\n{given}" if given.strip() else instruction
    turns: list[Message] = [{"role": "user", "content": question}, {"role": "assistant", "content": output}]
    return Conversation(_system(row, columns) + turns)


def _tools(row: dict[str, Any], columns: dict[str, str]) -> list[dict[str, Any]] | None:
    return read_tools(row.get(columns["tools"]), columns["tools"])


def _system(row: dict[str, Any], columns: dict[str, str]) -> list[Message]:
    """A system message from ShareGPT's or Alpaca's own `system` column."""
    text = row.get(columns["system"])
    if text is None or text == "":
        return []
    return [{"role": "system", "content": read_text(text, columns["system"])}]


_READERS: dict[DatasetFormat, Callable[[dict[str, Any], dict[str, str], bool], Row]] = {
    DatasetFormat.MESSAGES: _messages,
    DatasetFormat.SHARE_GPT: _share_gpt,
    DatasetFormat.PROMPT_COMPLETION: _prompt_completion,
    DatasetFormat.TEXT: _text,
    DatasetFormat.ALPACA: _alpaca,
}
