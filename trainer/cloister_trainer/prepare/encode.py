"""Tokenises rendered text in batches, and maps spans of characters to spans of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding, Tokenizer

from cloister_trainer.prepare.examples import TokenIds, TokenSpan
from cloister_trainer.prepare.render import Rendered
from cloister_trainer.prepare.template import CharSpan
from cloister_trainer.prepare.tokenizer import TokenizerKit

BATCH = 64
"""Texts in one call; the tokenizer's own records take about 100 bytes a token."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Ids uint32 [n], and the spans of tokens that carry loss, sorted and disjoint."""

    tokens: TokenIds
    spans: list[TokenSpan]
    merged: bool
    """A token reaches over the border between prompt and completion of a text without template."""


class Encoder:
    """Tokenises as the model's own tokenizer does."""

    def __init__(self, kit: TokenizerKit) -> None:
        self._kit = kit
        self._tokenizer = Tokenizer.from_str(kit.tokenizer_json)

    def encode(self, rendered: Sequence[Rendered]) -> list[Encoded]:
        """Ids and trained spans of each text.

        Text without a template gets what the tokenizer puts before a sequence, unless it is written there already.
        A token that reaches over a span's beginning carries loss: it is the first one that differs from the prompt's.
        """
        results: list[Encoded] = []
        for start in range(0, len(rendered), BATCH):
            batch = rendered[start : start + BATCH]
            encodings = self._tokenizer.encode_batch([one.text for one in batch], add_special_tokens=False)
            results += [self._read(encoding, one) for encoding, one in zip(encodings, batch, strict=True)]
        return results

    def decode(self, ids: list[int]) -> str:
        """The text of ids, special tokens written out."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def _read(self, encoding: Encoding, rendered: Rendered) -> Encoded:
        prefix = self._prefix(rendered)
        spans = [_token_span(encoding, span, len(rendered.text)) for span in rendered.spans]
        tokens = np.array([*prefix, *encoding.ids], dtype=np.uint32)
        shifted = [(start + len(prefix), end + len(prefix)) for start, end in spans if start < end]
        return Encoded(tokens, _join(shifted), rendered.plain and _reaches_over(encoding, rendered, spans))

    def _prefix(self, rendered: Rendered) -> tuple[int, ...]:
        bos = self._kit.bos_token
        return self._kit.prefix if rendered.plain and not (bos and rendered.text.startswith(bos)) else ()


def _token_span(encoding: Encoding, span: CharSpan, length: int) -> TokenSpan:
    """The tokens that hold the characters of a span."""
    count = len(encoding.ids)
    start = _first_token_from(encoding, span[0], length)
    end = count if span[1] >= length else _first_token_from(encoding, span[1], length)
    return start, end


def _first_token_from(encoding: Encoding, position: int, length: int) -> int:
    """The first token that holds the character at `position`, or, when no token does, the next character that one
    does. A token of no width right before it (SentencePiece writes a lone space mark so) belongs to it."""
    while position < length:
        token = encoding.char_to_token(position)
        if token is not None:
            while token > 0 and encoding.token_to_chars(token - 1) == (position, position):
                token -= 1
            return int(token)
        position += 1
    return len(encoding.ids)


def _reaches_over(encoding: Encoding, rendered: Rendered, spans: list[TokenSpan]) -> bool:
    """Whether the first trained token holds characters from before its span."""
    if not spans or spans[0][0] >= len(encoding.ids):
        return False
    characters = encoding.token_to_chars(spans[0][0])
    return characters is not None and characters[0] < rendered.spans[0][0]


def _join(spans: list[TokenSpan]) -> list[TokenSpan]:
    """Sorted, disjoint spans: two that share or touch a token become one."""
    joined: list[TokenSpan] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined
