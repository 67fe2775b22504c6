"""The rows of datasets.toml, the files that they name, and the labelled texts that these hold."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from absl.app import UsageError
from msgspec import Meta

from ground.documents import check_shape, read_toml
from ground.words import did_you_mean
from tasks.kinds import KINDS, METHODS, find_kind
from tasks.readers import READERS, find_reader
from tasks.span_scores import SCORINGS
from tasks.submissions import FORMS
from tasks.templates import TEMPLATES
from tasks.text_scores import UNITS

_Names = Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1)]


class _SubmissionShape(TypedDict, total=False):
    form: str
    files: dict[str, _Names]
    id: Literal["row", "key"]


_Id = Annotated[int, Meta(ge=-1, le=2**24)]
_Words = Annotated[list[Annotated[list[_Id], Meta(min_length=1, max_length=64)]], Meta(min_length=1)]


class _PromptShape(TypedDict, total=False):
    """What a run makes of a pattern and a verbalizer; `run.json` has it, see `tasks.prompts.prompt`."""

    mask_id: _Id
    masks: Annotated[int, Meta(ge=1, le=64)]
    slots: Annotated[list[_Id], Meta(max_length=2**16)]
    words: list[_Words]
    anchors: Annotated[int, Meta(ge=0, le=2**16)]


class _RowShape(TypedDict):
    columns: list[str]
    metric: str
    files: dict[str, _Names]
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
    retrieval_margin: NotRequired[Literal["none", "ratio", "distance"]]
    margin_neighbours: NotRequired[Annotated[int, Meta(ge=1)]]
    quoting: NotRequired[Literal["none", "csv"]]
    only: NotRequired[dict[str, str]]
    join: NotRequired[dict[str, str]]
    template: NotRequired[str]
    incomplete: NotRequired[Literal["refuse", "skip"]]
    blanks: NotRequired[list[str]]
    find_labels: NotRequired[bool]
    optional: NotRequired[list[str]]
    asked: NotRequired[dict[str, str]]
    counts: NotRequired[dict[str, Annotated[int, Meta(ge=1)]]]
    language: NotRequired[str]
    source_language: NotRequired[str]
    by_language: NotRequired[dict[str, dict[str, Any]]]
    plug_in: NotRequired[bool]
    pattern: NotRequired[str]
    verbalizer: NotRequired[list[str]]
    prompt: NotRequired[_PromptShape]
    submission: NotRequired[_SubmissionShape]


SPLITS = ("train", "dev", "test")
_SPLIT = re.compile(r"train|(dev|test)(_\w+)?")
VARIANTS = "variants"
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
    id: str | None = field(default=None, compare=False)
    partner: Example | None = field(default=None, compare=False)
    """The same example in another language."""


class NoExampleError(UsageError):
    """A file holds no example of its row."""


class Examples(list[Any]):
    """The examples of a file in order, and how many of its rows are none, by reason."""

    def __init__(self, examples: Any = ()):
        super().__init__(examples)
        self.dropped: Counter[str] = Counter()

    @classmethod
    def of(cls, files: Iterable[Sequence[Any]]) -> Examples:
        """Return the examples of several files, one after the other."""
        joined = cls()
        for examples in files:
            joined.extend(examples)
            joined.dropped += getattr(examples, "dropped", Counter())
        return joined


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
    retrieval_margin: str = "none"
    margin_neighbours: int = 4
    quoting: str = "none"
    only: Mapping[str, str] = field(default_factory=dict)
    join: Mapping[str, str] = field(default_factory=dict)
    template: str = ""
    incomplete: str = "refuse"
    blanks: tuple[str, ...] = ()
    find_labels: bool = False
    optional: tuple[str, ...] = ()
    asked: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    language: str = ""
    source_language: str = ""
    by_language: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    plug_in: bool = False
    pattern: str = ""
    verbalizer: tuple[str, ...] = ()
    prompt: Mapping[str, Any] = field(default_factory=dict)
    submission: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_pair(self) -> bool:
        return "text_b" in self.columns or bool(self.separator)

    @property
    def header_names(self) -> Mapping[str, tuple[str, ...]]:
        """What files call each column, the row's own names first; a name that the user asked for is the only one."""
        known = {**find_kind(self.kind).header_names, **(TEMPLATES[self.template].columns if self.template else {})}
        known = {column: (*self.names.get(column, ()), *names) for column, names in known.items()}
        known |= {column: names for column, names in self.names.items() if column not in known}
        return known | {column: (name,) for column, name in self.asked.items()}

    def of_language(self, language: str) -> DatasetRow:
        """Return the row as the files of one of its languages are read and scored."""
        return dataclasses.replace(self, language=language, **self.by_language[language])


def load_rows(path: Path = ROWS_FILE) -> dict[str, DatasetRow]:
    """Return the rows of a TOML file by name.

    Raises:
        UsageError: the file is missing or no TOML, or a row has an unknown or missing field.
    """
    return {
        name: parse_row(name, variant, path)
        for family, table in _tables(path).items()
        for name, variant in _variants(family, table, path)
    }


@functools.cache
def _shipped() -> Mapping[str, DatasetRow]:
    return load_rows()


def _tables(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path, what="a TOML file of task rows")
    except FileNotFoundError:
        raise UsageError(f"no such file of task rows: {path}") from None


def _variants(family: str, table: object, path: Path) -> Iterator[tuple[str, object]]:
    """Yield the rows that a table stands for, with their names.

    Example: [xnli] with variants = { language = ["de", "fr"] } and files = { dev = ["dev-{language}.tsv"] }
        yields xnli_de with dev-de.tsv and xnli_fr with dev-fr.tsv
    """
    if not isinstance(table, dict) or VARIANTS not in table:
        yield family, table
        return
    fix = 'write variants = { language = ["de", "fr"] } and {language} where it stands in names'
    named = table.pop(VARIANTS)
    check_shape(
        named,
        Annotated[dict[str, _Names], Meta(min_length=1, max_length=1)],
        where=f"{path}: [{family}] variants",
        fix=fix,
    )
    ((variable, values),) = named.items()
    for value in values:
        own = {"source_language": "en" if "en" in values else "", **table, "language": value}
        yield f"{family}_{value}", _filled(own if variable == "language" else table, f"{{{variable}}}", value)


def _filled(content: Any, place: str, value: str) -> Any:
    if isinstance(content, dict):
        return {key: _filled(each, place, value) for key, each in content.items()}
    if isinstance(content, list):
        return [_filled(each, place, value) for each in content]
    return content.replace(place, value) if isinstance(content, str) else content


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
    if (name_of_kind := table.get("kind", "classification")) not in {**KINDS, **METHODS}:
        raise UsageError(f"{path}: [{name}] is of the unknown kind {name_of_kind!r}; known: {', '.join(KINDS)}")
    for split in table["files"]:
        if not _SPLIT.fullmatch(split):
            raise UsageError(
                f"{path}: [{name}] names files for {split!r}; known: {', '.join(SPLITS)}, and others: dev_x"
            )
    files = {split: tuple(candidates) for split, candidates in table["files"].items()}
    as_tuples = ("columns", "labels", "ignored_labels", "blanks", "optional", "score_range", "verbalizer")
    lists = {key: tuple(table[key]) for key in as_tuples if key in table}
    names = {column: tuple(words) for column, words in table.get("names", {}).items()}
    row = DatasetRow(name=name, **{**table, **lists, "files": files, "names": names})
    _check_words(row, path)
    return row


def _check_words(row: DatasetRow, path: Path) -> None:
    """Raise `UsageError` where a field of a row names what is not known, or one thing twice."""
    kind, where = find_kind(row.kind), f"{path}: [{row.name}]"
    if lacking := [
        field for field in kind.needs if not (getattr(row, field) or (field == "labels" and row.find_labels))
    ]:
        raise UsageError(f"{where} lacks {', '.join(lacking)}")
    if row.submission and not row.submission.keys() >= {"form", "files"}:
        raise UsageError(f"{where} has a submission without form or files; write it as in tasks/datasets.toml")
    if row.submission and not hasattr(kind, "submitted"):
        raise UsageError(f"{where} has a submission, but rows of {row.kind} hand nothing in; leave it out")
    for what, words, allowed in (
        ("column", (*row.columns, *row.optional), (*kind.columns, "-")),
        ("template", [row.template], ("", *TEMPLATES)),
        ("metric", [row.metric], kind.metrics),
        ("format", [row.format], READERS),
        ("unit", [row.units], UNITS),
        ("scoring", [row.scoring] if row.scoring else [], SCORINGS),
        ("form of a submission", [row.submission["form"]] if row.submission else (), FORMS),
        ("split", (*row.counts, *row.submission.get("files", ())), row.files),
    ):
        for word in words:
            if word not in allowed:
                raise UsageError(f"{where} has the unknown {what} {word!r}; known: {', '.join(allowed)}")
    further = TEMPLATES[row.template].columns if row.template else ()
    for column in (*row.names, *row.join, *row.asked):
        if column not in (allowed := (*kind.columns, *further, "id")):
            raise UsageError(f"{where} has the unknown column of names {column!r}; known: {', '.join(allowed)}")
    columns = [column for column in row.columns if column != "-"]
    for what, words in (("column", columns), ("label", row.labels), ("label", [*row.labels, *row.ignored_labels])):
        if twice := [word for word, times in Counter(words).items() if times > 1]:
            raise UsageError(f"{where} has the {what} {twice[0]!r} twice; name it once")
    for spelt, label in row.label_names.items():
        if label not in (*row.labels, *row.ignored_labels):
            raise UsageError(f"{where} calls {spelt!r} the label {label!r}, which is none of its labels")
    if complaint := complaint_of(row):
        raise UsageError(f"{where} {complaint}")


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
    if not -100 <= row.threshold <= 100:
        return f"has the threshold {row.threshold:g}; expected a cosine, a probability, or a margin below 100"
    complaint = getattr(find_kind(row.kind), "complaint", None)
    return complaint(row) if complaint else ""


def find_row(task_name: str, task_file: Path | None = None) -> DatasetRow:
    """Return the row called `task_name`, also of the user's `task_file`; case, '-' and '_' make no difference.

    Raises:
        UsageError: no such row; the message names the nearest and all.
    """
    rows = {**_shipped(), **(load_rows(task_file) if task_file else {})}
    name = task_name.lower().replace("-", "_")
    if name in rows:
        return rows[name]
    plain = {known.replace("_", ""): known for known in rows}
    if (same := plain.get(name.replace("_", ""))) is not None:
        return rows[same]
    if variants := [known.removeprefix(f"{name}_") for known in rows if known.startswith(f"{name}_")]:
        together = " or --task_type, to train for all" if find_family(task_name, task_file) else ""
        raise UsageError(
            f"--task_name={task_name} is several tasks: give {name}_X, X one of {', '.join(variants)}{together}"
        )
    families = sorted({*_tables(ROWS_FILE), *(_tables(task_file) if task_file else ())})
    raise UsageError(f"unknown --task_name {task_name!r}{did_you_mean(name, rows)} known: {', '.join(families)}")


def find_family(task_name: str, task_file: Path | None = None) -> dict[str, DatasetRow]:
    """Return the rows of a task in several languages by language, or none where `task_name` is no such task."""
    rows = {**_shipped(), **(load_rows(task_file) if task_file else {})}
    name = task_name.lower().replace("-", "_").replace("_", "")
    return {
        row.language: row
        for row in rows.values()
        if row.language and row.name.removesuffix(f"_{row.language}").replace("_", "") == name
    }


def find_file(row: DatasetRow, data_dir: Path, split: str) -> Path:
    """Return the one file of `split` in `data_dir`; raises `UsageError` as `find_split` does, and for several."""
    path, *others = find_split(row, data_dir, split)
    if others:
        raise UsageError(f"{split} of --task_name={row.name} is several files, {path.name}, {others[0].name} ...")
    return path


def find_split(row: DatasetRow, data_dir: Path, split: str) -> tuple[Path, ...]:
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
    way_out = ", or hold a share of the training examples out with --dev_share=0.1" if split == "dev" else ""
    where = f"--data_dir={data_dir} holds none of {wanted} for {split} of --task_name={row.name}"
    raise UsageError(f"{where}: give their folder{way_out}")


def _files_called(data_dir: Path, name: str) -> list[Path]:
    if "*" not in name:
        return [data_dir / name] if (data_dir / name).is_file() else []
    try:
        return sorted(path for path in data_dir.glob(name) if path.is_file())
    except (ValueError, NotImplementedError):  # as "**a" or "/*"
        raise UsageError(f"{name!r} is no pattern of files; expected a name in which * stands for a part") from None


def read_examples(row: DatasetRow, path: Path, *, need_labels: bool) -> Examples:
    """Return all examples of a file in order.

    A first line whose label is no label of the row is a header line; without it the columns are in the row's order.
    Rows with an ignored label, and with `incomplete = "skip"` those that lack a column, are left out and counted where
    labels are needed; of a test file every row is an example, since every row gets a prediction.

    Args:
        row: the columns and labels.
        path: .json and .jsonl are JSON lines, everything else is TAB separated; a BOM is skipped.
        need_labels: whether an example without a label is an error (training) or allowed (prediction).

    Raises:
        UsageError: a malformed line, an unknown label, a missing label; file and line are named.
        NoExampleError: no example at all.
    """
    examples, build = Examples(), TEMPLATES[row.template].build if row.template else None
    texts = [column for column in ("text_a", "text_b") if column in row.columns]
    skip, is_pair, blanks, known = (
        row.incomplete == "skip",
        row.is_pair,
        {"", *row.blanks},
        {*row.labels, *row.ignored_labels},
    )
    for where, record in find_reader(row.format).records(row, path):
        if build:
            record |= _built(build, record, where)
        label, lacking = record.get("label"), [column for column in texts if record.get(column, "").strip() in blanks]
        if label is not None:
            label = row.label_names.get(label, label)
            if label not in known:
                raise _unknown_label(row, label, where)
        elif need_labels and not skip:
            raise UsageError(f"{where}: no label; training and evaluation need {', '.join(row.columns)}")
        if lacking and not skip:
            raise UsageError(f"{where}: {lacking[0]} is missing or empty; expected {', '.join(row.columns)}")
        if label in row.ignored_labels:
            if need_labels:
                examples.dropped[f"the label {label!r}"] += 1
                continue
            label = None
        if need_labels and (lacking or label is None):
            examples.dropped["a column that is missing or empty"] += 1
            continue
        text_b = record.get("text_b", "") if is_pair else None
        examples.append(Example(record.get("text_a", ""), text_b, label, record.get("id")))
    if not examples:
        which = "".join(f" of {name} {value}" for name, value in row.only.items())
        raise NoExampleError(f"{path} holds no example{which}: expected a line for each, with {', '.join(row.columns)}")
    return examples


def _built(
    build: Callable[[Mapping[str, str]], dict[str, str]], record: Mapping[str, str], where: str
) -> dict[str, str]:
    try:
        return build(record)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None


def _unknown_label(row: DatasetRow, label: str, where: str) -> UsageError:
    hint = did_you_mean(label, row.labels) or f"; expected one of {', '.join(row.labels)}"
    return UsageError(f"{where}: label {label!r} is not a label of {row.name}{hint}")
