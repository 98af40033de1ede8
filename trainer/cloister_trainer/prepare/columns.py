"""Which columns of a dataset hold what, for one format."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    """A format with the dataset's own name of each of its columns."""

    format: DatasetFormat
    mapping: dict[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """`Messages (messages from column "conversations", tools)`."""
        parts = [name if name == column else f'{name} from column "{column}"' for name, column in self.mapping.items()]
        return f"{self.format.value} ({', '.join(parts)})"


def map_columns(row_format: DatasetFormat, columns: DatasetColumns | None, present: set[str]) -> RowFormat:
    """The format with a name for each column: the job's own, else the usual one that is present, else the first."""
    mapping = {}
    for use in COLUMNS[row_format]:
        stated = getattr(columns, use.name, None) if columns else None
        found = next((name for name in use.usual if name in present), None)
        if stated or found or use.required:
            mapping[use.name] = stated or found or use.usual[0]
    return RowFormat(row_format, mapping)
