"""Which columns of a dataset hold what, for one format."""

from __future__ import annotations

from dataclasses import dataclass

from cloister_api.spec_data import DatasetColumns, DatasetFormat


@dataclass(frozen=True)
class ColumnUse:
    """How a format names a column when the job does not: the field of dataset.columns, the usual names, if needed."""

    name: str
    usual: tuple[str, ...]
    required: bool = True


COLUMNS: dict[DatasetFormat, tuple[ColumnUse, ...]] = {
    DatasetFormat.MESSAGES: (
        ColumnUse("messages", ("messages", "conversations")),
        ColumnUse("tools", ("tools",), required=False),
    ),
    DatasetFormat.PROMPT_COMPLETION: (
        ColumnUse("prompt", ("prompt",)),
        ColumnUse("completion", ("completion",)),
        ColumnUse("tools", ("tools",), required=False),
    ),
    DatasetFormat.TEXT: (ColumnUse("text", ("text",)),),
    DatasetFormat.SHARE_GPT: (
        ColumnUse("messages", ("conversations", "messages")),
        ColumnUse("system", ("system",), required=False),
        ColumnUse("tools", ("tools",), required=False),
    ),
    DatasetFormat.ALPACA: (
        ColumnUse("instruction", ("instruction",)),
        ColumnUse("input", ("input",), required=False),
        ColumnUse("output", ("output",)),
        ColumnUse("system", ("system",), required=False),
    ),
}
"""Columns by format; the names are those of dataset.columns, and `system`, which has no other name."""


@dataclass(frozen=True)
class RowFormat:
    """A format with the dataset's own name of each of its columns, also of those that only some rows have."""

    format: DatasetFormat
    mapping: dict[str, str]


def map_columns(row_format: DatasetFormat, columns: DatasetColumns | None, present: set[str]) -> RowFormat:
    """The format with a name for each column: the job's own, else the usual one that is present, else the first.

    `present` are the columns of the first rows; an optional column may be in later ones only.
    """
    mapping = {}
    for use in COLUMNS[row_format]:
        stated = getattr(columns, use.name, None) if columns else None
        found = next((name for name in use.usual if name in present), None)
        mapping[use.name] = stated or found or use.usual[0]
    return RowFormat(row_format, mapping)
