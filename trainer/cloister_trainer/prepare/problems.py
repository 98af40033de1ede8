"""What is wrong with a dataset, said so that whoever owns the file can correct it, and never with a row's content."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason

SHOWN = 20
"""Problems told in full; the rest is counted."""

KEY_SHOWN = 40
"""Characters of a column name that are shown."""


class RowError(Exception):
    """A row cannot be used. Whoever knows the file and the line turns it into a `Problem`."""

    def __init__(self, field: str, found: str, expected: str, action: str = "Correct the row or remove it.") -> None:
        super().__init__(field, found, expected, action)
        self.field, self.found, self.expected, self.action = field, found, expected, action

    def at(self, file: str, position: str) -> Problem:
        """The problem with its place."""
        return Problem(file, position, self.field, self.found, self.expected, self.action)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where (file, `line 3`, field), what was found, what was expected, what to do."""

    file: str
    position: str
    field: str
    found: str
    expected: str
    action: str

    def __str__(self) -> str:
        place = ", ".join(part for part in (self.file, self.position, self.field) if part)
        return f"{place}: found {self.found}, expected {self.expected}. {self.action}"


@dataclass
class FoundProblems:
    """The first problems of a chunk, a file or a dataset, and the count of all."""

    first: list[Problem] = field(default_factory=list)
    count: int = 0

    def add(self, problem: Problem) -> None:
        """Count a problem, and keep it if it is one of the first."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(problem)

    def merge(self, later: FoundProblems) -> None:
        """Add the problems of a later part."""
        self.count += later.count
        self.first += later.first[: SHOWN - len(self.first)]

    def refuse(self) -> None:
        """Raise DatasetInvalid with the first problems and the count, if there are any."""
        if not self.count:
            return
        if self.count == 1:
            head = "The dataset has a problem:"
        elif self.count <= SHOWN:
            head = f"The dataset has {self.count} problems:"
        else:
            head = f"The dataset has {self.count} problems; the first {len(self.first)}:"
        lines = [head, *(f"- {problem}" for problem in self.first)]
        raise CloisterError(FailureReason.DATASET_INVALID, "\n".join(lines))


@dataclass(frozen=True)
class Undecodable:
    """Stands for a value that its file holds and that cannot be had; it matters only where a format reads it."""

    found: str


_TYPE_NAMES: dict[type, str] = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    dict: "an object",
    bytes: "binary data",
}


def type_name(value: object) -> str:
    """A JSON type as people call it: `a string`, `null`, `a list of 3`."""
    if isinstance(value, str):
        return "a string" if value else "an empty string"
    if isinstance(value, Undecodable):
        return value.found
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    return _TYPE_NAMES.get(type(value), f"a value of type {type(value).__name__}")


def as_text(name: str) -> str:
    """A column name that can be written as UTF-8: halves of surrogate pairs, which JSON lets in, as their escapes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def name_columns(names: Iterable[str], limit: int = 10) -> str:
    """Column names for a sentence, long ones cut, the rest counted."""
    all_names = [as_text(name) for name in names]
    if not all_names:
        return "no columns"
    shown = [name if len(name) <= KEY_SHOWN else name[: KEY_SHOWN - 1] + "…" for name in all_names[:limit]]
    more = f" and {len(all_names) - limit} more" if len(all_names) > limit else ""
    return ", ".join(shown) + more


def not_an_object(value: object) -> RowError:
    """A row that is no JSON object."""
    return RowError("", type_name(value), "an object with one key a column")


def no_rows(found: str) -> RowError:
    """A file without rows."""
    return RowError("", found, "at least one row", "Write rows into the file or remove it.")
