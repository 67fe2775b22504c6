"""Labelled data a line an example: TAB separated columns, with or without a header line, or a JSON object."""

from __future__ import annotations

import csv
import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from data.corpus.compression import open_text
from data.corpus.encodings import find_encoding
from data.corpus.look import look
from ground.documents import SURROGATE, json_line

if TYPE_CHECKING:
    from tasks.datasets import DatasetRow

# No example is as long: what a model reads is a thousandth of it.
MAX_LINE_BYTES = 1 << 20
_ANSWERS = ("label", "target")  # columns that a test file may lack


def records(row: DatasetRow, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the place of every line and its columns by name; .json and .jsonl are JSON lines, else TABs separate.

    Raises:
        UsageError: a malformed line; file and line are named.
    """
    return _json_records(row, path) if path.suffix in (".json", ".jsonl") else _tab_records(row, path)


def read_lines(row: DatasetRow, path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not empty with their numbers, as `all_lines` does."""
    return all_lines(row, path, empty=False)


def all_lines(row: DatasetRow, path: Path, *, empty: bool = True) -> Iterator[tuple[int, str]]:
    """Yield the lines with their numbers, also empty ones if `empty`; compressed files are decompressed.

    Raises:
        UsageError: the file is no text in the row's encoding, or a line is too long or holds a NUL; the line is named.
    """
    encoding = find_encoding(row.encoding)
    if wrong := look(path, encoding):
        raise UsageError(f"{path} is not {encoding.upper()} text: {wrong}")
    # Split on LF only: str.splitlines would cut at U+2028 and friends, which occur inside real questions.
    with open_text(path, encoding) as stream:
        for number, raw in enumerate(iter(functools.partial(stream.readline, MAX_LINE_BYTES), b""), start=1):
            if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
                raise UsageError(f"{path}:{number}: longer than {MAX_LINE_BYTES:,} bytes; expected an example a line")
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"{path}:{number} is not {encoding.upper()} text (byte {error.start} of the line); mend it, or "
                    "give --encoding"
                ) from None
            if "\0" in line:
                raise UsageError(f"{path}:{number}: a NUL character; expected text, with a TAB between columns")
            if line or empty:
                yield number, line


def read_cells(row: DatasetRow, path: Path, delimiter: str, quoting: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of every row that is not empty with the number of its first line.

    Args:
        row: of the table.
        path: of the file.
        delimiter: between cells.
        quoting: "none", where a quote is a character like others, or "csv", where quoted cells may hold delimiters.

    Raises:
        UsageError: as `all_lines` does, and where quotes do not close.
    """
    if quoting == "none":
        return ((number, line.split(delimiter)) for number, line in read_lines(row, path))
    return _quoted_cells(row, path, delimiter)


def _quoted_cells(row: DatasetRow, path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader((f"{line}\n" for _, line in all_lines(row, path)), delimiter=delimiter, strict=True)
    begin = 1
    try:
        for cells in reader:
            if cells:
                yield begin, cells
            begin = reader.line_num + 1
    except csv.Error as error:
        raise UsageError(
            f"{path}:{begin}: {error}; expected cells in CSV's quotes: double a quote inside of a cell, close each"
        ) from None


def _json_records(row: DatasetRow, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    header_names = row.header_names
    for where, fields in json_objects(row, path):
        if (record := pick(row, header_names, fields, where)) is not None:
            yield where, record


def json_objects(row: DatasetRow, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the JSON object of every line with its place; raises `UsageError` where a line is none."""
    for line_number, line in read_lines(row, path):
        where = f"{path}:{line_number}"
        try:
            fields = json_line(line)
        except ValueError as error:
            raise UsageError(f"{where}: not a JSON object ({error})") from None
        if not isinstance(fields, dict):
            raise UsageError(f"{where}: not a JSON object but {type(fields).__name__}")
        yield where, fields


def pick(
    row: DatasetRow, header_names: Mapping[str, Sequence[str]], fields: Mapping[str, Any], where: str
) -> dict[str, str] | None:
    """Return the values of an object by column as text, or None where it is not one of the row's (`only`).

    Example: names of text_b ("target.text", "text"), join of text_a " "
        {"words": ["a", "b"], "target": {"text": "c"}} -> {"text_a": "a b", "text_b": "c"}

    Raises:
        UsageError: a value is no text; `where` is named.
    """
    if row.only and any(name in fields and str(fields[name]) != value for name, value in row.only.items()):
        return None
    record = {}
    for column, names in header_names.items():
        name = next((name for name in names if name in fields), None)
        if name is None and any("." in name for name in names):
            name = next((name for name in names if "." in name and _inner(fields, name) is not None), None)
        value = None if name is None else fields[name] if name in fields else _inner(fields, name)
        if value is None:  # null is an absent value, not the word None
            if column in row.asked and column not in _ANSWERS:
                raise UsageError(f"{where}: no {row.asked[column]!r}; it has {', '.join(map(str, fields))}")
            continue
        if not isinstance(value, str):
            between = row.label_separator or None if column == "label" else row.join.get(column)
            value = _as_text(value, between, f"{where}: {name}")
        record[column] = value
        if half := SURROGATE.search(value):
            raise UsageError(
                f"{where}: {name} has \\u{ord(half[0]):04x}, half of a character; expected text, write both halves"
            )
    return record


def _inner(fields: Mapping[str, Any], name: str) -> Any:
    """Return the value at a name such as "target.span1_text"; None where nothing is there."""
    value: Any = fields
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _as_text(value: Any, between: str | None, what: str) -> str:
    """Return a number as text, and the texts of a list with `between` between them where the row joins it."""
    if isinstance(value, list) and between is not None and all(isinstance(each, str | int) for each in value):
        return between.join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{what} is {str(value)[:40]}; expected text or a number")
    try:
        return str(value)
    except ValueError:
        raise UsageError(f"{what} has thousands of digits; expected text") from None


def _tab_records(row: DatasetRow, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    return table_records(row, path, read_cells(row, path, "\t", row.quoting))


def table_records(
    row: DatasetRow, path: Path, table: Iterator[tuple[int, list[str]]], cells_are: str = "TAB separated columns"
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the place of every row of a table and its columns by name; `cells_are` names the cells in messages.

    Raises:
        UsageError: a row has more or fewer cells than columns; file and line are named.
    """
    columns: tuple[str, ...] = row.columns
    unlabelled = tuple(column for column in columns if column not in _ANSWERS)
    only: Sequence[tuple[int, str]] = ()
    for order, (line_number, cells) in enumerate(table):
        if order == 0 and (header := find_header(row, path, cells)):
            columns = unlabelled = header.columns
            only = header.only
            continue
        names = columns if len(cells) == len(columns) else unlabelled
        if len(cells) != len(names):
            if row.incomplete != "skip" or len(cells) > len(names):
                raise UsageError(f"{path}:{line_number}: got {len(cells)} {cells_are}, expected {', '.join(columns)}")
            names = columns[: len(cells)]
        if only and any(place < len(cells) and cells[place] != value for place, value in only):
            continue
        yield f"{path}:{line_number}", {name: cell for name, cell in zip(names, cells, strict=True) if name != "-"}


@dataclass(frozen=True)
class Header:
    """What a header line says: the columns in its order, and which values some cells must have."""

    columns: tuple[str, ...]
    only: tuple[tuple[int, str], ...] = ()


def find_header(row: DatasetRow, path: Path, cells: Sequence[str]) -> Header | None:
    """Return what a header line says, or None where the line is an example.

    Raises:
        UsageError: the line names a column twice, or lacks one that was asked for by name.
    """
    found = [cell.strip().lower() for cell in cells]
    # Of several names of one column in a line the first is the column, as in a JSON object.
    chosen = {
        name: column
        for column, names in row.header_names.items()
        for name in [name.lower() for name in names if name.lower() in found][:1]
    }
    for column, name in row.asked.items():
        if column not in _ANSWERS and name.lower() not in found:
            raise UsageError(f"{path}: no column {name!r}; its first line has {', '.join(cells)[:200]}")
    named = tuple(chosen.get(cell, "-") for cell in found)
    if set(named) >= set(row.columns) - {*_ANSWERS, "-"}:
        if twice := [name for name, times in Counter(named).items() if times > 1 and name != "-"]:
            raise UsageError(f"{path}:1: the header names {twice[0]} twice; name one of them otherwise")
        return Header(named, tuple((found.index(name), value) for name, value in row.only.items() if name in found))
    if len(cells) == len(row.columns) and "label" in row.columns:
        label = cells[row.columns.index("label")]
        # A header in words of its own: by position, and only where the cell cannot be a mistyped label.
        if row.label_names.get(label, label) not in (*row.labels, *row.ignored_labels) and "label" in label.lower():
            return Header(row.columns)
    if row.asked:
        asked = ", ".join(row.asked.values())
        raise UsageError(
            f"{path}: its first line names no columns, so that {asked} cannot be found by name; add such a line"
        )
    return None
