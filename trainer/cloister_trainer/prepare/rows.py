"""The canonical forms of a row: a conversation, or plain text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cloister_trainer.prepare.problems import RowError, type_name

HASH_BYTES = 16

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages for a chat template. Assistant messages from index `trained_from` on can carry loss."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    trained_from: int = 0

    def content(self) -> list[Any]:
        """What makes two rows the same."""
        return ["conversation", self.messages, self.tools, self.trained_from]

    def prompt_content(self) -> list[Any]:
        """The same without the last assistant turn."""
        return ["conversation", self.messages[: self.last_turn], self.tools]

    @property
    def last_turn(self) -> int:
        """Index of the last assistant message, or -1."""
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index]["role"] == "assistant":
                return index
        return -1


@dataclass(frozen=True, slots=True)
class PlainText:
    """Text without a template; the completion carries loss, the prompt does not."""

    prompt: str
    completion: str

    def content(self) -> list[Any]:
        """What makes two rows the same."""
        return ["text", self.prompt, self.completion]

    def prompt_content(self) -> list[Any]:
        """The same without the completion; text without a prompt is its own prompt."""
        return ["text", self.prompt] if self.prompt else ["text", "", self.completion]


Row = Conversation | PlainText


def content_hash(content: list[Any]) -> bytes:
    """HASH_BYTES bytes that name a content: BLAKE2b over its JSON with sorted keys.

    Raises RowError for half of a surrogate pair, which is no text and cannot be written as UTF-8, and for what JSON
    has no form of, such as a timestamp in a message, as Parquet may have.
    """
    try:
        encoded = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise RowError("", "half of a surrogate pair (an escape from \\ud800 to \\udfff)", "whole characters") from None
    except TypeError:
        raise _not_json(content) from None
    except RecursionError:
        raise RowError("", "values nested too deeply", "a conversation") from None
    return hashlib.blake2b(encoded, digest_size=HASH_BYTES).digest()


def _not_json(content: list[Any]) -> RowError:
    """The first value in a conversation's content that JSON has no form of."""
    _, messages, tools, *_ = content
    path, value = next(_not_json_in(messages, "messages"), None) or next(_not_json_in(tools, "tools"))
    action = "Write it as a string or a number, or remove the key."
    return RowError(path, type_name(value), "a string, a number, a boolean, a list or an object", action)


def _not_json_in(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Path and value of each such value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _not_json_in(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _not_json_in(item, f"{path}[{index}]")
    elif not isinstance(value, str | int | float | None):
        yield path, value
