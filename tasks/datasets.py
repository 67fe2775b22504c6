"""The rows of datasets.toml, the files that they name, and the labelled texts that these hold."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NotRequired, TypedDict

from absl.app import UsageError
from msgspec import Meta

from ground.documents import check_shape, read_toml
from ground.words import did_you_mean
from tasks.kinds import KINDS, find_kind
from tasks.readers import READERS, find_reader
from tasks.span_scores import SCORINGS
from tasks.text_scores import UNITS


class _RowShape(TypedDict):
    columns: list[str]
    metric: str
    files: dict[str, Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1)]]
    kind: NotRequired[str]
    format: NotRequired[str]
    labels: NotRequired[list[str]]
    label_names: NotRequired[dict[str, str]]
    ignored_labels: NotRequired[list[str]]
    encoding: NotRequired[str]
    names: NotRequired[dict[str, list[str]]]
    separator: NotRequired[str]
    units: NotRequired[str]
    scoring: NotRequired[str]
    no_answer: NotRequired[bool]
    score_range: NotRequired[Annotated[list[float], Meta(max_length=2)]]
    label_separator: NotRequired[str]
    threshold: NotRequired[float]
    pooling: NotRequired[Literal["mean", "cls"]]
    pooling_layer: NotRequired[int]
    temperature: NotRequired[float]


SPLITS = ("train", "dev", "test")
ROWS_FILE = Path(__file__).with_name("datasets.toml")

# What published files call the columns; the first name that a header line or a JSON object holds is the column.
HEADER_NAMES: Mapping[str, tuple[str, ...]] = {
    "text_a": ("text_a", "sentence1", "question1", "query1", "premise", "sentence", "text", "review", "title"),
    "text_b": ("text_b", "sentence2", "question2", "query2", "hypothesis", "hypo"),
    "label": ("label", "gold_label", "label_id"),
}


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
    format: str = "lines"
    labels: tuple[str, ...] = ()
    label_names: Mapping[str, str] = field(default_factory=dict)
    ignored_labels: tuple[str, ...] = ()
    encoding: str = "utf-8"
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    separator: str = ""
    units: str = "characters"
    scoring: str = ""
    no_answer: bool = False
    score_range: tuple[float, ...] = ()
    label_separator: str = ""
    threshold: float = 0.5
    pooling: str = "mean"
    pooling_layer: int = -1
    temperature: float = 0.05

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
    lists = {key: tuple(table[key]) for key in ("columns", "labels", "ignored_labels", "score_range") if key in table}
    names = {column: tuple(words) for column, words in table.get("names", {}).items()}
    row = DatasetRow(name=name, **{**table, **lists, "files": files, "names": names})
    kind = find_kind(name_of_kind)
    if lacking := [field for field in kind.needs if not getattr(row, field)]:
        raise UsageError(f"{path}: [{name}] lacks {', '.join(lacking)}")
    for what, words, allowed in (
        ("column", row.columns, (*kind.columns, "-")),
        ("column of names", row.names, kind.columns),
        ("metric", [row.metric], kind.metrics),
        ("format", [row.format], READERS),
        ("unit", [row.units], UNITS),
        ("scoring", [row.scoring] if row.scoring else [], SCORINGS),
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
    if complaint := complaint_of(row):
        raise UsageError(f"{path}: [{name}] {complaint}")
    return row


def complaint_of(row: DatasetRow) -> str:
    """Return what is wrong with the numbers of a row, or what its kind finds wrong; empty where nothing is."""
    if row.score_range and not (
        len(row.score_range) == 2
        and all(map(math.isfinite, row.score_range))
        and row.score_range[0] < row.score_range[1]
    ):
        return f"has the score_range {list(row.score_range)}; expected the lowest and the highest score, as [0, 5]"
    if not 0 < row.temperature < math.inf:
        return f"has the temperature {row.temperature:g}; expected a number above 0, as 0.05"
    if not -1 <= row.threshold <= 1:
        return f"has the threshold {row.threshold:g}; expected a number from -1 to 1"
    complaint = getattr(find_kind(row.kind), "complaint", None)
    return complaint(row) if complaint else ""


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
    """Return the one file of `split` in `data_dir`; raises `UsageError` as `find_files` does, and for several."""
    path, *others = find_files(row, data_dir, split)
    if others:
        raise UsageError(f"{split} of --task_name={row.name} is several files, {path.name}, {others[0].name} ...")
    return path


def find_files(row: DatasetRow, data_dir: Path, split: str) -> tuple[Path, ...]:
    """Return the files of the first candidate of `split` that exists in `data_dir`.

    A candidate may be several files, which are read as one: "d-train.json + m-train.json" where all are there, and
    "train/middle/*.txt" in the order of their names.

    Raises:
        UsageError: there is none; the message names the candidates.
    """
    if not data_dir.is_dir():
        raise UsageError(f"--data_dir={data_dir} is not a folder: give the one with the task's files")
    if split not in row.files:
        raise UsageError(f"--task_name={row.name} names no file for {split}: add {split} to the files of its row")
    for candidate in row.files[split]:
        found = [_files_called(data_dir, name) for name in candidate.split(" + ")]
        if all(found):
            return tuple(path for paths in found for path in paths)
    wanted = ", ".join(row.files[split])
    raise UsageError(
        f"--data_dir={data_dir} holds none of {wanted} for {split} of --task_name={row.name}: give their folder"
    )


def _files_called(data_dir: Path, name: str) -> list[Path]:
    if "*" not in name:
        return [data_dir / name] if (data_dir / name).is_file() else []
    try:
        return sorted(path for path in data_dir.glob(name) if path.is_file())
    except (ValueError, NotImplementedError):  # as "**a" or "/*"
        raise UsageError(f"{name!r} is no pattern of files; expected a name in which * stands for a part") from None


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
    for where, record in find_reader(row.format).records(row, path):
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
