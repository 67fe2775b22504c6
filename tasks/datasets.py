"""The rows of datasets.toml and the files they name: labelled examples from TAB separated text or JSON lines."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NotRequired, TypedDict

from absl.app import UsageError
from msgspec import Meta

from data.corpus.compression import open_text
from data.corpus.encodings import find_encoding
from data.corpus.look import look
from ground.documents import SURROGATE, check_shape, json_line, read_toml
from ground.words import did_you_mean
from tasks.kinds import KINDS, find_kind
from tasks.text_scores import UNITS

# No example is as long: what a model reads is a thousandth of it.
MAX_LINE_BYTES = 1 << 20


class _RowShape(TypedDict):
    columns: list[str]
    metric: str
    files: dict[str, Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1)]]
    kind: NotRequired[str]
    labels: NotRequired[list[str]]
    label_names: NotRequired[dict[str, str]]
    ignored_labels: NotRequired[list[str]]
    encoding: NotRequired[str]
    names: NotRequired[dict[str, list[str]]]
    separator: NotRequired[str]
    units: NotRequired[str]


SPLITS = ("train", "dev", "test")
ROWS_FILE = Path(__file__).with_name("datasets.toml")

# What published files call the columns; the first name that a header line or a JSON object holds is the column.
HEADER_NAMES: Mapping[str, tuple[str, ...]] = {
    "text_a": ("text_a", "sentence1", "question1", "query1", "premise", "sentence", "text", "review", "title"),
    "text_b": ("text_b", "sentence2", "question2", "query2", "hypothesis", "hypo"),
    "label": ("label", "gold_label", "label_id"),
}


_ANSWERS = ("label", "target")  # columns that a test file may lack


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled text or pair of texts; `label` is None where the file does not tell (a test file)."""

    text_a: str
    text_b: str | None
    label: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRow:
    """One row of datasets.toml; the comments there define the fields."""

    name: str
    columns: tuple[str, ...]
    metric: str
    files: Mapping[str, tuple[str, ...]]
    kind: str = "classification"
    labels: tuple[str, ...] = ()
    label_names: Mapping[str, str] = field(default_factory=dict)
    ignored_labels: tuple[str, ...] = ()
    encoding: str = "utf-8"
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    separator: str = ""
    units: str = "characters"

    @property
    def is_pair(self) -> bool:
        return "text_b" in self.columns or bool(self.separator)

    @property
    def header_names(self) -> Mapping[str, tuple[str, ...]]:
        """What files call each column, the row's own names first."""
        known = find_kind(self.kind).header_names
        return {column: (*self.names.get(column, ()), *names) for column, names in known.items()}


def load_rows(path: Path = ROWS_FILE) -> dict[str, DatasetRow]:
    """Return the rows of a TOML file by name.

    Raises:
        UsageError: the file is missing or no TOML, or a row has an unknown or missing field.
    """
    try:
        tables = read_toml(path, what="a TOML file of task rows")
    except FileNotFoundError:
        raise UsageError(f"no such file of task rows: {path}") from None
    return {name: parse_row(name, table, path) for name, table in tables.items()}


def parse_row(name: str, table: object, path: Path) -> DatasetRow:
    """Return the row that `table`, read from `path`, describes; raises `UsageError` for wrong fields."""
    known = {f.name: f for f in dataclasses.fields(DatasetRow) if f.name != "name"}
    if not isinstance(table, dict):
        raise UsageError(f"{path}: {name} is not a table; write [{name}] and its fields below")
    for key in table:
        if key not in known:
            raise UsageError(f"{path}: [{name}] has the unknown field {key!r}{did_you_mean(key, known)}")
    missing = [key for key in ("columns", "metric", "files") if key not in table]
    if missing:
        raise UsageError(f"{path}: [{name}] lacks {', '.join(missing)}")
    check_shape(table, _RowShape, where=f"{path}: [{name}]", fix="write it as in tasks/datasets.toml")
    if (name_of_kind := table.get("kind", "classification")) not in KINDS:
        raise UsageError(f"{path}: [{name}] is of the unknown kind {name_of_kind!r}; known: {', '.join(KINDS)}")
    for split in table["files"]:
        if split not in SPLITS:
            raise UsageError(f"{path}: [{name}] names files for {split!r}; known: {', '.join(SPLITS)}")
    files = {split: tuple(candidates) for split, candidates in table["files"].items()}
    lists = {key: tuple(table[key]) for key in ("columns", "labels", "ignored_labels") if key in table}
    names = {column: tuple(words) for column, words in table.get("names", {}).items()}
    row = DatasetRow(name=name, **{**table, **lists, "files": files, "names": names})
    kind = find_kind(name_of_kind)
    if lacking := [field for field in kind.needs if not getattr(row, field)]:
        raise UsageError(f"{path}: [{name}] lacks {', '.join(lacking)}")
    for what, words, allowed in (
        ("column", row.columns, (*kind.columns, "-")),
        ("column of names", row.names, kind.columns),
        ("metric", [row.metric], kind.metrics),
        ("unit", [row.units], UNITS),
    ):
        for word in words:
            if word not in allowed:
                raise UsageError(f"{path}: [{name}] has the unknown {what} {word!r}; known: {', '.join(allowed)}")
    columns = [column for column in row.columns if column != "-"]
    for what, words in (("column", columns), ("label", row.labels), ("label", [*row.labels, *row.ignored_labels])):
        if twice := [word for word, times in Counter(words).items() if times > 1]:
            raise UsageError(f"{path}: [{name}] has the {what} {twice[0]!r} twice; name it once")
    for spelt, label in row.label_names.items():
        if label not in (*row.labels, *row.ignored_labels):
            raise UsageError(f"{path}: [{name}] calls {spelt!r} the label {label!r}, which is none of its labels")
    return row


def find_row(task_name: str, task_file: Path | None = None) -> DatasetRow:
    """Return the row called `task_name`, also of the user's `task_file`; case, '-' and '_' make no difference.

    Raises:
        UsageError: no such row; the message names the nearest and all.
    """
    rows = load_rows() | (load_rows(task_file) if task_file else {})
    name = task_name.lower().replace("-", "_")
    if name not in rows:
        raise UsageError(
            f"unknown --task_name {task_name!r}{did_you_mean(name, rows)} known: {', '.join(sorted(rows))}"
        )
    return rows[name]


def find_file(row: DatasetRow, data_dir: Path, split: str) -> Path:
    """Return the first candidate of `split` that exists in `data_dir`.

    Raises:
        UsageError: none does; the message names the candidates.
    """
    if not data_dir.is_dir():
        raise UsageError(f"--data_dir={data_dir} is not a folder: give the one with the task's files")
    if split not in row.files:
        raise UsageError(f"--task_name={row.name} names no file for {split}: add {split} to the files of its row")
    for candidate in row.files[split]:
        if (data_dir / candidate).is_file():
            return data_dir / candidate
    wanted = ", ".join(row.files[split])
    raise UsageError(
        f"--data_dir={data_dir} holds none of {wanted} for {split} of --task_name={row.name}: give their folder"
    )


def read_examples(row: DatasetRow, path: Path, *, need_labels: bool) -> list[Example]:
    """Return all examples of a file in order.

    A first line whose label is no label of the row is a header line; without it the columns are in the row's order.

    Args:
        row: the columns and labels.
        path: .json and .jsonl are JSON lines, everything else is TAB separated; a BOM is skipped.
        need_labels: whether an example without a label is an error (training) or allowed (prediction).

    Raises:
        UsageError: a malformed line, an unknown label, a missing label, or no example at all; file and line are named.
    """
    examples = []
    for line_number, record in read_records(row, path):
        where = f"{path}:{line_number}"
        label = record.get("label")
        if label is not None:
            label = row.label_names.get(label, label)
            if label in row.ignored_labels:
                continue
            if label not in row.labels:
                hint = did_you_mean(label, row.labels) or f"; expected one of {', '.join(row.labels)}"
                raise UsageError(f"{where}: label {label!r} is not a label of {row.name}{hint}")
        elif need_labels:
            raise UsageError(f"{where}: no label; training and evaluation need {', '.join(row.columns)}")
        for column in ("text_a", "text_b"):
            if column in row.columns and not record.get(column, "").strip():
                raise UsageError(f"{where}: {column} is missing or empty; expected {', '.join(row.columns)}")
        examples.append(Example(record["text_a"], record.get("text_b") if row.is_pair else None, label))
    if not examples:
        raise UsageError(f"{path} holds no example: expected a line for each, with {', '.join(row.columns)}")
    return examples


def read_records(row: DatasetRow, path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number of every line and its columns by name; raises `UsageError` for a malformed line."""
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


def _json_records(row: DatasetRow, path: Path) -> Iterator[tuple[int, dict[str, str]]]:
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
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise UsageError(f"{where}: {name} is {str(value)[:40]}; expected text or a number")
            record[column] = value if isinstance(value, str) else _as_text(value, where)
            if half := SURROGATE.search(record[column]):
                raise UsageError(
                    f"{where}: {name} has \\u{ord(half[0]):04x}, half of a character; expected text, write both halves"
                )
        yield line_number, record


def _as_text(value: float, where: str) -> str:
    try:
        return str(value)
    except ValueError:  # thousands of digits
        raise UsageError(f"{where}: a number has thousands of digits; expected text") from None


def _tab_records(row: DatasetRow, path: Path) -> Iterator[tuple[int, dict[str, str]]]:
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
        yield line_number, {name: cell for name, cell in zip(names, cells, strict=True) if name != "-"}


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
