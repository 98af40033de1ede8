"""Which token holds a character of the text: from the tokenizer's offsets, or from the lengths of its tokens.

A byte-level tokenizer writes every byte of the text into exactly one token. The lengths of a text's tokens then tell
where each lies, and the tokenizer need not keep offsets, which saves a quarter of its time.
"""

from __future__ import annotations

import json
import unicodedata
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

_OTHER_LENGTHS = ("unk_token", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
"""Settings of a BPE model with which a token's name is not as long as what it stands for."""

Lengths = npt.NDArray[np.int64]


class Positions(Protocol):
    """Where the tokens of one text lie."""

    def token_at(self, position: int) -> int:
        """The first token that holds the character at `position`, or the next character that any token holds; the
        number of tokens when there is none."""

    def reaches_before(self, token: int, position: int) -> bool:
        """Whether a token also holds characters from before `position`."""


class OffsetPositions:
    """Positions by the offsets that the tokenizer kept."""

    def __init__(self, encoding: Encoding, text: str) -> None:
        self._encoding, self._length = encoding, len(text)

    def token_at(self, position: int) -> int:
        """As in Positions. A token of no width right before it (SentencePiece writes a lone space mark so) counts."""
        while position < self._length:
            token = self._encoding.char_to_token(position)
            if token is not None:
                while token > 0 and self._encoding.token_to_chars(token - 1) == (position, position):
                    token -= 1
                return int(token)
            position += 1
        return len(self._encoding.ids)

    def reaches_before(self, token: int, position: int) -> bool:
        """As in Positions."""
        characters = self._encoding.token_to_chars(token)
        return characters is not None and characters[0] < position


class BytePositions:
    """Positions by the lengths of tokens in bytes: `ends` int64 [n], where each token ends in the text's UTF-8."""

    def __init__(self, ends: Lengths, text: str) -> None:
        self._ends, self._text = ends, text

    def token_at(self, position: int) -> int:
        """As in Positions."""
        return int(np.searchsorted(self._ends, self._bytes_before(position), side="right"))

    def reaches_before(self, token: int, position: int) -> bool:
        """As in Positions."""
        start = int(self._ends[token - 1]) if token > 0 else 0
        return start < self._bytes_before(position)

    def _bytes_before(self, position: int) -> int:
        return position if self._text.isascii() else len(self._text[:position].encode())


def byte_lengths(tokenizer_json: str) -> Lengths | None:
    """Bytes of each token by id, for a byte-level BPE tokenizer that leaves text as it is; None for any other.

    Its vocabulary writes each byte as one character (Radford et al. 2019). Without an unknown token, a byte that the
    vocabulary lacks is left out, and the lengths fall short of the text's. Normalisers other than NFC may change text
    in ways that lengths do not show, and so may added tokens that are found in normalised text or take white space.
    """
    fields = json.loads(tokenizer_json)
    normalizer, model, added = fields.get("normalizer"), fields["model"], fields["added_tokens"]
    if model["type"] != "BPE" or not _is_byte_level(fields.get("pre_tokenizer")):
        return None
    if any(model.get(name) for name in _OTHER_LENGTHS):
        return None
    if normalizer is not None and (normalizer["type"] != "NFC" or any(token["normalized"] for token in added)):
        return None
    if any(token["lstrip"] or token["rstrip"] for token in added):
        return None
    by_id = {index: len(token) for token, index in model["vocab"].items()}
    by_id |= {token["id"]: len(token["content"].encode()) for token in added}
    lengths = np.zeros(max(by_id) + 1, np.int64)
    lengths[list(by_id)] = list(by_id.values())
    return lengths


def byte_positions(lengths: Lengths, ids: npt.NDArray[np.uint32], text: str) -> BytePositions | None:
    """Positions by lengths; None when the tokens do not hold the text byte by byte."""
    if not (text.isascii() or unicodedata.is_normalized("NFC", text)):
        return None
    ends = np.cumsum(lengths[ids])
    size = len(text) if text.isascii() else len(text.encode())
    return BytePositions(ends, text) if len(ends) and ends[-1] == size else None


def _is_byte_level(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Whether every byte becomes one character, no space is put before the text, and nothing is removed."""
    if pre_tokenizer is None:
        return False
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    return any(step["type"] == "ByteLevel" for step in steps) and not any(
        step.get("add_prefix_space") for step in steps
    )
