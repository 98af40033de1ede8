"""Tokenises rendered text in batches, and maps spans of characters to spans of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from cloister_trainer.prepare.examples import TokenIds, TokenSpan
from cloister_trainer.prepare.positions import OffsetPositions, Positions, byte_lengths, byte_positions
from cloister_trainer.prepare.render import Rendered
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
        self._lengths = byte_lengths(kit.tokenizer_json)

    def encode(self, rendered: Sequence[Rendered]) -> list[Encoded]:
        """Ids and trained spans of each text.

        Text without a template gets what the tokenizer puts before a sequence, unless it is written there already.
        A token that reaches over a span's beginning carries loss: it is the first one that differs from the prompt's.
        """
        batches = (rendered[start : start + BATCH] for start in range(0, len(rendered), BATCH))
        return [
            self._read(one, *found) for batch in batches for one, found in zip(batch, self._locate(batch), strict=True)
        ]

    def decode(self, ids: list[int]) -> str:
        """The text of ids, special tokens written out."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def _locate(self, batch: Sequence[Rendered]) -> list[tuple[TokenIds, Positions]]:
        """Ids of each text, and where they lie in it."""
        texts = [one.text for one in batch]
        if self._lengths is None:
            return self._locate_by_offsets(texts)
        found: list[tuple[TokenIds, Positions]] = []
        for text, encoding in zip(
            texts, self._tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True
        ):
            ids = np.array(encoding.ids, np.uint32)
            positions = byte_positions(self._lengths, ids, text)
            found += self._locate_by_offsets([text]) if positions is None else [(ids, positions)]
        return found

    def _locate_by_offsets(self, texts: list[str]) -> list[tuple[TokenIds, Positions]]:
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [
            (np.array(encoding.ids, np.uint32), OffsetPositions(encoding, text))
            for encoding, text in zip(encodings, texts, strict=True)
        ]

    def _read(self, rendered: Rendered, ids: TokenIds, positions: Positions) -> Encoded:
        spans = [(positions.token_at(start), positions.token_at(end)) for start, end in rendered.spans]
        merged = rendered.plain and bool(spans) and positions.reaches_before(spans[0][0], rendered.spans[0][0])
        prefix = self._prefix(rendered)
        shifted = [(start + len(prefix), end + len(prefix)) for start, end in spans if start < end]
        tokens = np.concatenate([np.array(prefix, np.uint32), ids]) if prefix else ids
        return Encoded(tokens, _join(shifted), merged)

    def _prefix(self, rendered: Rendered) -> tuple[int, ...]:
        bos = self._kit.bos_token
        return self._kit.prefix if rendered.plain and not (bos and rendered.text.startswith(bos)) else ()


def _join(spans: list[TokenSpan]) -> list[TokenSpan]:
    """Sorted, disjoint spans: two that share or touch a token become one."""
    joined: list[TokenSpan] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined
