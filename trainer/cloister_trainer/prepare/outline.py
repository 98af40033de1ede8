"""What a template writes round the contents of a conversation: learned once for each sequence of roles.

Finding the trained spans takes several renderings of a conversation. Conversations with the same roles have the same
text round their contents, so the spans are found once with placeholders as contents. For a row it then suffices to
render it once and to see that the outline, filled with the row's contents, is that very text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from cloister_trainer.prepare.rows import Message
from cloister_trainer.prepare.template import CharSpan

Border = tuple[int, int]
"""A place in the literal text: index of the literal, characters into it."""


@dataclass(frozen=True, slots=True)
class Outline:
    """n + 1 literals round n contents, and the spans between places in the literals."""

    literals: list[str]
    spans: list[tuple[Border, Border]]

    def fill(self, contents: Sequence[str]) -> str:
        """The text with these contents."""
        pieces = [self.literals[0]]
        for content, literal in zip(contents, self.literals[1:], strict=True):
            pieces += (content, literal)
        return "".join(pieces)

    def spans_with(self, contents: Sequence[str]) -> list[CharSpan]:
        """The spans in the text with these contents."""
        sizes = [len(literal) + len(content) for literal, content in zip(self.literals, contents, strict=False)]
        starts = [0, *accumulate(sizes)]
        return [(starts[a] + a_offset, starts[b] + b_offset) for (a, a_offset), (b, b_offset) in self.spans]


def placeholders(count: int) -> list[str]:
    """Contents that no template writes by itself: numbers between private-use characters."""
    return [f"\ue000{index}\ue001" for index in range(count)]


def is_plain(message: Message) -> bool:
    """Whether a message has nothing but a role and a content, which an outline knows how to fill in."""
    return len(message) == 2 and "content" in message


def make_outline(text: str, spans: Sequence[CharSpan], contents: Sequence[str]) -> Outline | None:
    """The outline of a text rendered with placeholders; None when it does not hold each of them once and in order."""
    literals: list[str] = []
    rest = text
    for content in contents:
        literal, found, rest = rest.partition(content)
        if not found or content in rest:
            return None
        literals.append(literal)
    literals.append(rest)
    borders = [(_border(literals, contents, start), _border(literals, contents, end)) for start, end in spans]
    located = [(start, end) for start, end in borders if start is not None and end is not None]
    return Outline(literals, located) if len(located) == len(spans) else None


def _border(literals: Sequence[str], contents: Sequence[str], position: int) -> Border | None:
    """The place of a position in the text, or None when it lies inside a content."""
    start = 0
    for index, literal in enumerate(literals):
        if start <= position <= start + len(literal):
            return index, position - start
        start += len(literal) + (len(contents[index]) if index < len(contents) else 0)
    return None
