"""A file of labelled texts with further rows: what it holds stays byte for byte, a copy differs in its texts alone."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from tasks.readers import csv_tables, lines

if TYPE_CHECKING:
    from tasks.datasets import DatasetRow

COLUMNS = ("text_a", "text_b")
_FORMATS = ("lines", "csv")


@dataclass(frozen=True)
class Labelled:
    """One row of a file.

    Attributes:
        texts: of its text columns.
        line: texts in their place -> the row as a line, without its end.
    """

    texts: tuple[str, ...]
    line: Callable[[Sequence[str]], str]


def check_row(row: DatasetRow) -> None:
    """Raise `UsageError` for a task whose rows are no texts in columns of a table."""
    if row.format not in _FORMATS or row.template or row.by_language or row.separator or "text_a" not in row.columns:
        raise UsageError(
            f"--task_name={row.name}: its files (format {row.format}, kind {row.kind}) do not hold a text or two in "
            "columns of a table; augment a task of classes, scores or labels whose files are lines, CSV or JSON lines"
        )


def labelled_rows(row: DatasetRow, path: Path) -> list[Labelled]:
    """Return the rows of a file that are examples; raises `UsageError` for a malformed one."""
    if path.suffix in (".gz", ".bz2", ".xz", ".zst"):
        raise UsageError(f"{path} is compressed; rows are added to plain files: decompress it first")
    found = list(_of_json(row, path) if csv_tables.is_json(path) else _of_table(row, path))
    if not found:
        raise UsageError(f"{path} holds no example")
    return found


def _of_json(row: DatasetRow, path: Path) -> Iterator[Labelled]:
    named = {column: names for column, names in row.header_names.items() if column in COLUMNS}
    for where, fields in lines.json_objects(row, path):
        if lines.pick(row, row.header_names, fields, where) is None:
            continue
        chosen = [next((name for name in named.get(column, ()) if name in fields), None) for column in COLUMNS]
        names = [name for name in chosen if name is not None and isinstance(fields[name], str)]
        if names:
            yield Labelled(tuple(fields[name] for name in names), _json_line(fields, names))


def _json_line(fields: Mapping[str, Any], names: Sequence[str]) -> Callable[[Sequence[str]], str]:
    return lambda texts: json.dumps({**fields, **dict(zip(names, texts, strict=True))}, ensure_ascii=False)


def _of_table(row: DatasetRow, path: Path) -> Iterator[Labelled]:
    delimiter, quoting = csv_tables.form_of(row, path) if row.format == "csv" else ("\t", row.quoting)
    columns, only = row.columns, ()
    for order, (_, cells) in enumerate(lines.read_cells(row, path, delimiter, quoting)):
        if order == 0 and (header := lines.find_header(row, path, cells)):
            columns, only = header.columns, header.only
            continue
        if len(cells) != len(columns) or any(cells[place] != value for place, value in only):
            continue
        places = [columns.index(column) for column in COLUMNS if column in columns]
        yield Labelled(tuple(cells[place] for place in places), _table_line(cells, places, delimiter, quoting))


def _table_line(
    cells: Sequence[str], places: Sequence[int], delimiter: str, quoting: str
) -> Callable[[Sequence[str]], str]:
    def line(texts: Sequence[str]) -> str:
        changed = list(cells)
        for place, text in zip(places, texts, strict=True):
            changed[place] = text
        if quoting == "none":
            return delimiter.join(changed)
        stream = io.StringIO()
        csv.writer(stream, delimiter=delimiter, lineterminator="").writerow(changed)
        return stream.getvalue()

    return line


def with_copies(
    row: DatasetRow, path: Path, rows: Sequence[Labelled], copies: Sequence[Sequence[Sequence[str]]]
) -> bytes:
    """Return the content of a file and behind it its copies, in its encoding.

    Raises:
        UsageError: a new word has no place in that encoding.
    """
    content = path.read_bytes()
    try:
        end = "\n".encode(row.encoding)
        further = [
            each.line(texts).encode(row.encoding) for each, own in zip(rows, copies, strict=True) for texts in own
        ]
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{path}: a new word has {error.object[error.start]!r}, which {row.encoding} has no code for; write the "
            "file in utf-8, or take a model of its characters"
        ) from None
    between = b"" if not content or content.endswith(end) else end
    return content + between + b"".join(line + end for line in further)
