"""Finds out how a source's rows are written, from the columns of its first rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cloister_api.errors import CloisterError
from cloister_api.reasons import FailureReason
from cloister_api.spec_data import DatasetColumns, DatasetFormat
from cloister_trainer.prepare.columns import RowFormat, map_columns
from cloister_trainer.prepare.problems import as_text, name_columns

PROBED_ROWS = 100
"""Rows that detection looks at."""


@dataclass(frozen=True)
class Detected:
    """A source's format, and the columns of its first rows: those that are read, by use, and those that are not."""

    row_format: RowFormat
    columns: dict[str, str]
    left_out: tuple[str, ...] = ()

    def describe(self) -> str:
        """`Messages (messages from column "conversations", tools); columns left out: id, source`."""
        parts = [name if name == column else f'{name} from column "{column}"' for name, column in self.columns.items()]
        left_out = f"; columns left out: {name_columns(self.left_out)}" if self.left_out else ""
        return f"{self.row_format.format.value} ({', '.join(parts)}){left_out}"


@dataclass(frozen=True)
class ProbedRows:
    """The first rows of a source: the file that has them, each row's place in it, and the row."""

    file: str
    rows: Sequence[tuple[str, dict[str, Any]]]


def detect(probed: ProbedRows, stated: DatasetFormat, columns: DatasetColumns | None) -> Detected:
    """The format of a source: the stated one, or for Auto the one that its first rows show.

    Raises CloisterError DatasetInvalid when no format fits, or when rows show different ones.
    """
    present = {name for _, row in probed.rows for name in row}
    row_format = stated if stated != DatasetFormat.AUTO else _agree(probed, columns)
    mapped = map_columns(row_format, columns, present)
    shown = {name: column for name, column in mapped.mapping.items() if column in present}
    left_out = tuple(as_text(name) for name in sorted(present) if name not in mapped.mapping.values())
    return Detected(mapped, shown, left_out)


def _agree(probed: ProbedRows, columns: DatasetColumns | None) -> DatasetFormat:
    first_place, first_row = probed.rows[0]
    first = _format_of(first_row, columns)
    if first is None:
        raise CloisterError(
            FailureReason.DATASET_INVALID,
            f"{probed.file}, {first_place}: the format cannot be told from the columns of the first row (found "
            f"{name_columns(first_row)}; expected messages, conversations, prompt and completion, instruction and "
            "output, or text). Set dataset.format, and dataset.columns where the columns have other names.",
        )
    for place, row in probed.rows:
        if (other := _format_of(row, columns)) != first:
            raise CloisterError(
                FailureReason.DATASET_INVALID,
                f"{probed.file}: formats are mixed: {first_place} is written as {first.value}, {place} "
                f"{f'as {other.value}' if other else f'has other columns ({name_columns(row)})'}. Rows of "
                "one source must have one format: correct the rows, or give each format its own dataset.sources entry.",
            )
    return first


def _format_of(row: dict[str, Any], columns: DatasetColumns | None) -> DatasetFormat | None:
    """The format whose columns a row has. Messages before prompts before instructions before text: a dataset often
    carries the rendered text, or the prompt alone, beside the columns that it was made from."""
    stated = columns.to_api() if columns else {}

    def has(name: str, *usual: str) -> str | None:
        return next((column for column in (stated.get(name), *usual) if column and column in row), None)

    if turns := has("messages", "messages", "conversations"):
        return DatasetFormat.SHARE_GPT if _is_share_gpt(row[turns]) else DatasetFormat.MESSAGES
    if has("prompt", "prompt") and has("completion", "completion"):
        return DatasetFormat.PROMPT_COMPLETION
    if has("instruction", "instruction") and has("output", "output"):
        return DatasetFormat.ALPACA
    if has("text", "text"):
        return DatasetFormat.TEXT
    return None


def _is_share_gpt(turns: object) -> bool:
    first = turns[0] if isinstance(turns, list) and turns else None
    return isinstance(first, dict) and "from" in first and "role" not in first
