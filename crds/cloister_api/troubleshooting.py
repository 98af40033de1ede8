"""docs/troubleshooting.md has one section for each reason: written by hand, and checked against the enums."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from cloister_api.reasons import ConditionReason, FailureReason

PAGE = "docs/troubleshooting.md"
CHAPTERS: Mapping[str, type[FailureReason] | type[ConditionReason]] = {
    "## Failures": FailureReason,
    "## Reasons of conditions": ConditionReason,
}
PARTS = ("See", "Why", "Look", "Do")
"""What a section of a failure says: what is to be seen, why, how to look, what to do."""


class WrongSectionsError(Exception):
    """The page has a section that belongs to no reason, or lacks a chapter; a person must decide about it."""


def with_sections(page: str) -> str:
    """The page with its sections in the order of the enums, and a skeleton where a reason has none.

    Raises WrongSectionsError.
    """
    chapters = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    headings = [chapter.partition("\n")[0] for chapter in chapters]
    if missing := set(CHAPTERS) - set(headings):
        raise WrongSectionsError(f"{PAGE} has no chapter {', '.join(sorted(missing))}: write it")
    return "".join(
        _chapter(chapter, CHAPTERS[heading]) if heading in CHAPTERS else chapter
        for heading, chapter in zip(headings, chapters, strict=True)
    )


def sections(chapter: str) -> Iterator[tuple[str, str]]:
    """Heading and whole text of each section of a chapter, its introduction first, under the empty heading."""
    for part in re.split(r"^(?=### )", chapter, flags=re.MULTILINE):
        heading = part.partition("\n")[0]
        yield heading.removeprefix("### ") if heading.startswith("### ") else "", part


def _chapter(chapter: str, reasons: type[FailureReason] | type[ConditionReason]) -> str:
    found = list(sections(chapter))
    written = dict(found)
    known = [reason.value for reason in reasons]
    if wrong := [name for name, _ in found if name and name not in known]:
        raise WrongSectionsError(f"{PAGE} has a section {wrong[0]}, which is no reason: rename or delete it")
    if len(written) != len(found):
        raise WrongSectionsError(f"{PAGE} has two sections of the same name: keep one")
    return written.get("", "") + "".join(written.get(reason.value, _skeleton(reason)) for reason in reasons)


def _skeleton(reason: FailureReason | ConditionReason) -> str:
    """A section to begin with."""
    if isinstance(reason, ConditionReason):
        return f"### {reason}\n\n{reason.meaning}\n\n"
    texts = (f"`{reason}` in `kubectl get ftj`.", reason.facts.meaning, "The job's message.", reason.facts.action)
    return f"### {reason}\n\n" + "".join(f"**{part}** {text}\n\n" for part, text in zip(PARTS, texts, strict=True))
