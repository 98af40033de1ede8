"""Tokenised examples: ids and the spans that carry loss, and what becomes of the ones that are too long."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloister_api.spec_data import TooLong
from cloister_trainer.prepare.problems import RowError

TokenIds = npt.NDArray[np.uint32]
TokenSpan = tuple[int, int]

PROMPT_SHARE = 4
"""When the trained part alone is too long, a quarter of the length is left to the prompt's end before it."""


@dataclass(frozen=True, slots=True)
class Example:
    """Ids uint32 [n]; sorted, disjoint spans [start, end) of tokens that carry loss, none holding token 0."""

    tokens: TokenIds
    spans: list[TokenSpan]
    repeats: int = 1
    """How often it occurs in an epoch."""

    @property
    def trained(self) -> int:
        """Tokens that carry loss."""
        return sum(end - start for start, end in self.spans)


def make_example(tokens: TokenIds, spans: list[TokenSpan], repeats: int) -> Example:
    """An example; the first token has nothing before it that could predict it, and carries no loss.

    Raises RowError when no token carries loss.
    """
    kept = [(max(start, 1), end) for start, end in spans if end > max(start, 1)]
    if not kept:
        raise RowError("", "no trainable token", "at least one token that carries loss")
    return Example(tokens, kept, repeats)


def fit(example: Example, max_length: int, too_long: TooLong, bos_id: int | None) -> list[Example]:
    """The example within `max_length` tokens: itself, cut, in pieces, or nothing when it is dropped.

    Raises RowError for TooLong.FAIL.
    """
    length = len(example.tokens)
    if length <= max_length:
        return [example]
    match too_long:
        case TooLong.DROP:
            return []
        case TooLong.FAIL:
            raise RowError(
                "",
                f"an example of {length} tokens",
                f"at most {max_length} (training.maxLength)",
                "Shorten the row, raise training.maxLength, or set dataset.tooLong to Truncate or Drop.",
            )
        case TooLong.SPLIT:
            pieces = [_window(example, at, min(at + max_length, length)) for at in range(0, length, max_length)]
            return [piece for piece in pieces if piece.spans]
        case TooLong.TRUNCATE:
            return [truncate(example, max_length, bos_id)]


def truncate(example: Example, max_length: int, bos_id: int | None) -> Example:
    """The first `max_length` tokens when one of them carries loss; else a later part that has trained tokens.

    That part keeps a beginning-of-sequence token, and otherwise drops the beginning of the prompt: it ends with the
    example when the trained tokens fit, and else begins a quarter of its length before the first of them.
    """
    head = _window(example, 0, max_length)
    if head.spans:
        return head
    keep = 1 if bos_id is not None and example.tokens[0] == bos_id else 0
    room = max_length - keep
    first, last = example.spans[0][0], example.spans[-1][1]
    start = last - room if last - first < room else first - room // PROMPT_SHARE
    part = _window(example, start, start + room)
    if not keep:
        return part
    return Example(
        np.concatenate([example.tokens[:1], part.tokens]),
        [(begin + 1, end + 1) for begin, end in _spans_within(example, start, start + room, first_label=0)],
        example.repeats,
    )


def _window(example: Example, start: int, end: int) -> Example:
    """Tokens [start, end) with the spans that lie in it."""
    return Example(example.tokens[start:end], _spans_within(example, start, end, first_label=1), example.repeats)


def _spans_within(example: Example, start: int, end: int, first_label: int) -> list[TokenSpan]:
    clipped = [(max(a - start, first_label), min(b, end) - start) for a, b in example.spans]
    return [(a, b) for a, b in clipped if a < b]
