"""The canonical forms of a row: a conversation, or plain text."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from cloister_trainer.prepare.problems import RowError

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

    Raises RowError for half of a surrogate pair, which is no text and cannot be written as UTF-8.
    """
    try:
        encoded = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise RowError("", "half of a surrogate pair (an escape from \\ud800 to \\udfff)", "whole characters") from None
    return hashlib.blake2b(encoded, digest_size=HASH_BYTES).digest()
