"""Labelled data a line an example: TAB separated columns, with or without a header line, or a JSON object."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
    """Yield the lines that are not empty with their numbers; compressed files are decompressed.

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
            if line:
                yield number, line


def _json_records(row: DatasetRow, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    header_names = row.header_names
    for line_number, line in read_lines(row, path):
        where = f"{path}:{line_number}"
        try:
            fields = json_line(line)
        except ValueError as error:
            raise UsageError(f"{where}: not a JSON object ({error})") from None
        if not isinstance(fields, dict):
            raise UsageError(f"{where}: not a JSON object but {type(fields).__name__}")
        record = {}
        for column, names in header_names.items():
            name = next((name for name in names if name in fields), None)
            value = None if name is None else fields[name]
            if value is None:  # null is an absent value, not the word None
                continue
            if column == "label" and row.label_separator and isinstance(value, list):
                value = row.label_separator.join(map(str, value))
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise UsageError(f"{where}: {name} is {str(value)[:40]}; expected text or a number")
            record[column] = value if isinstance(value, str) else _as_text(value, where)
            if half := SURROGATE.search(record[column]):
                raise UsageError(
                    f"{where}: {name} has \\u{ord(half[0]):04x}, half of a character; expected text, write both halves"
                )
        yield where, record


def _as_text(value: float, where: str) -> str:
    try:
        return str(value)
    except ValueError:  # thousands of digits
        raise UsageError(f"{where}: a number has thousands of digits; expected text") from None


def _tab_records(row: DatasetRow, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    columns: tuple[str, ...] = row.columns
    unlabelled = tuple(column for column in columns if column not in _ANSWERS)
    for order, (line_number, line) in enumerate(read_lines(row, path)):
        cells = line.split("\t")
        if order == 0 and (header := _header(row, cells)):
            if twice := [name for name, times in Counter(header).items() if times > 1 and name != "-"]:
                raise UsageError(f"{path}:{line_number}: the header names {twice[0]} twice; name one of them otherwise")
            columns = unlabelled = header
            continue
        names = columns if len(cells) == len(columns) else unlabelled
        if len(cells) != len(names):
            raise UsageError(
                f"{path}:{line_number}: got {len(cells)} TAB separated columns, expected {', '.join(columns)}"
            )
        yield f"{path}:{line_number}", {name: cell for name, cell in zip(names, cells, strict=True) if name != "-"}


def _header(row: DatasetRow, cells: Sequence[str]) -> tuple[str, ...] | None:
    """The columns in the order of a header line, or None where the line is an example."""
    found = [cell.strip().lower() for cell in cells]
    # Of several names of one column in a line the first is the column, as in a JSON object.
    chosen = {
        name: column for column, names in row.header_names.items() for name in [n for n in names if n in found][:1]
    }
    named = tuple(chosen.get(cell, "-") for cell in found)
    if set(named) >= set(row.columns) - {*_ANSWERS, "-"}:
        return named
    if len(cells) == len(row.columns) and "label" in row.columns:
        label = cells[row.columns.index("label")]
        # A header in words of its own: by position, and only where the cell cannot be a mistyped label.
        if row.label_names.get(label, label) not in (*row.labels, *row.ignored_labels) and "label" in label.lower():
            return row.columns
    return None
