"""Checks and tidies a list of chat messages as it comes from a file."""

from __future__ import annotations

import json
from typing import Any

from cloister_trainer.prepare.problems import RowError, type_name
from cloister_trainer.prepare.rows import Message

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
"""Roles that chat templates know."""

SHARE_GPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""`from` in ShareGPT rows, and the role it stands for."""


def read_messages(value: Any, field: str) -> list[Message]:
    """The messages of a row, each with a known role and text content; other keys are kept for the template.

    Raises RowError with the field's path when something is missing, of another type, or empty.
    """
    if not isinstance(value, list) or not value:
        raise RowError(field, type_name(value), "a list of messages, each an object with role and content")
    return [_read_message(message, f"{field}[{index}]") for index, message in enumerate(value)]


def read_share_gpt(value: Any, field: str) -> list[Message]:
    """The messages of a ShareGPT row: objects with `from` and `value`."""
    if not isinstance(value, list) or not value:
        raise RowError(field, type_name(value), "a list of turns, each an object with from and value")
    return [_read_turn(turn, f"{field}[{index}]") for index, turn in enumerate(value)]


def read_tools(value: Any, field: str) -> list[dict[str, Any]] | None:
    """Tool definitions for the chat template: a list of JSON schemas, also as JSON in a string. None without any."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError):
            raise RowError(field, "a string that is not JSON", "a list of tool definitions") from None
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise RowError(field, type_name(value), "a list of tool definitions, each an object")
    return value


def read_text(value: Any, field: str) -> str:
    """A string, possibly empty."""
    if not isinstance(value, str):
        raise RowError(field, type_name(value), "a string")
    return value


def _read_message(message: Any, field: str) -> Message:
    if not isinstance(message, dict):
        raise RowError(field, type_name(message), "an object with role and content")
    role = message.get("role")
    if role not in ROLES:
        found = "no role" if "role" not in message else "an unknown role" if isinstance(role, str) else type_name(role)
        raise RowError(f"{field}.role", found, f"one of {', '.join(ROLES)}")
    tidy = {key: value for key, value in message.items() if value is not None}
    if "tool_calls" in tidy:
        tidy["tool_calls"] = _read_tool_calls(tidy["tool_calls"], f"{field}.tool_calls")
        if not tidy["tool_calls"]:
            del tidy["tool_calls"]
    if "content" in tidy:
        tidy["content"] = _read_content(tidy["content"], f"{field}.content")
    elif "tool_calls" not in tidy:
        found = "null" if "content" in message else "no content"
        raise RowError(f"{field}.content", found, "a string, or tool_calls in an assistant message")
    if role == "assistant" and "tool_calls" not in tidy and not tidy["content"].strip():
        raise RowError(f"{field}.content", "an empty completion", "the text that the model shall learn to write")
    return tidy


def _read_content(content: Any, field: str) -> str:
    """Text, or text parts joined; parts of another type cannot be trained here."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RowError(field, type_name(content), "a string, or a list of text parts")
    texts = []
    for index, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
            raise RowError(f"{field}[{index}]", "a part that is not text", "an object with type text and a string text")
        texts.append(part["text"])
    return "".join(texts)


def _read_tool_calls(calls: Any, field: str) -> list[dict[str, Any]]:
    """Tool calls with arguments as objects: serving engines hand them so to chat templates, which write JSON."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RowError(field, type_name(calls), "a list of tool calls, each an object")
    return [_read_tool_call(call, f"{field}[{index}]") for index, call in enumerate(calls)]


def _read_tool_call(call: dict[str, Any], field: str) -> dict[str, Any]:
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError(f"{field}.function", type_name(call.get("function")), "an object with name and arguments")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        function = {**function, "arguments": _json_object(arguments)}
    return {**call, "function": function} if "function" in call else function


def _json_object(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _read_turn(turn: Any, field: str) -> Message:
    if not isinstance(turn, dict):
        raise RowError(field, type_name(turn), "an object with from and value")
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in SHARE_GPT_ROLES:
        found = (
            "no from" if "from" not in turn else "an unknown role" if isinstance(speaker, str) else type_name(speaker)
        )
        raise RowError(f"{field}.from", found, f"one of {', '.join(SHARE_GPT_ROLES)}")
    if "value" not in turn:
        raise RowError(f"{field}.value", "no value", "a string")
    text = read_text(turn["value"], f"{field}.value")
    role = SHARE_GPT_ROLES[speaker]
    if role == "assistant" and not text.strip():
        raise RowError(f"{field}.value", "an empty completion", "the text that the model shall learn to write")
    if speaker != "function_call":
        return {"role": role, "content": text}
    call = _json_object(text)
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise RowError(f"{field}.value", "a string that is no function call", "JSON with name and arguments")
    return {"role": role, "content": "", "tool_calls": [_read_tool_call({"type": "function", "function": call}, field)]}
