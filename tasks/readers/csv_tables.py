"""A user's own table: CSV, TSV or JSON lines whose first line names the columns.

Python's csv module reads the cells. A .tsv file has TABs between cells and quotes like other characters; in a .csv file
the delimiter is the one by which the first line names the columns.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from absl.app import UsageError

from tasks.readers import lines

if TYPE_CHECKING:
    from tasks.datasets import DatasetRow

DELIMITERS = (",", "\t", ";", "|")
_FLAGS = "--text_column, --text_pair_column and --label_column"


def records(row: DatasetRow, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the place of every row and its columns by name.

    Raises:
        UsageError: the first line names no such columns, or a row is malformed; file and line are named.
    """
    if is_json(path):
        return lines.records(row, path)
    delimiter, quoting = form_of(row, path)
    hint = "" if quoting == "csv" else " (cells of .tsv have no quotes around them; name it .csv where they have)"
    cells_are = f"cells between {delimiter!r}{hint}"
    return lines.table_records(row, path, lines.read_cells(row, path, delimiter, quoting), cells_are)


def is_json(path: Path) -> bool:
    """Return whether a file has a JSON object a line, by its name."""
    return path.suffix in (".json", ".jsonl")


def form_of(row: DatasetRow, path: Path) -> tuple[str, str]:
    """Return delimiter and quoting of a table; raises `UsageError` where no first line names the columns."""
    forms = [("\t", "none")] if path.suffix == ".tsv" else [(delimiter, "csv") for delimiter in DELIMITERS]
    complaint, shown = None, []
    for delimiter, quoting in forms:
        cells = _first_cells(row, path, delimiter, quoting)
        try:
            if lines.find_header(row, path, cells):
                return delimiter, quoting
        except UsageError as error:
            complaint = complaint if len(cells) <= len(shown) else error
        shown = max(shown, cells, key=len)
    if complaint:
        raise complaint
    wanted = ", ".join(column for column in row.columns if column != "label")
    raise UsageError(
        f"{path}: its first line names no {wanted}, it has {', '.join(shown)[:200]}; say what to read with {_FLAGS}"
    )


def _first_cells(row: DatasetRow, path: Path, delimiter: str, quoting: str) -> list[str]:
    _, line = next(lines.read_lines(row, path), (1, ""))
    if quoting == "none":
        return line.split(delimiter)
    return next(csv.reader([line], delimiter=delimiter), [])
