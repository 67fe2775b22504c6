"""What there is to see of the answers to a split, as data: tables, and the examples that went most wrong.

A kind offers it (`Kind.inspected`); `tasks/evaluation_page.py` makes a page of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tasks.metrics import calibration, confusion_matrix

MOST_EXAMPLES = 50
MOST_CHARACTERS = 600
"""Longer texts are cut on the page."""
_MOST_CLASSES = 20
"""With more labels a matrix is replaced by the most frequent confusions."""
_MOST_ROWS = 100


class Mark(NamedTuple):
    """A stretch of a text: `begin` is its first character, `end` the one behind it."""

    begin: int
    end: int
    name: str
    right: bool = True


@dataclass(frozen=True)
class Text:
    """A text with marks, which may overlap; `name` says what it is."""

    name: str
    text: str
    marks: Sequence[Mark] = ()


@dataclass(frozen=True)
class Table:
    """Rows of texts. Of a matrix the first column names the rows, and the diagonal behind it is what is right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    is_matrix: bool = False


@dataclass(frozen=True)
class Seen:
    """One example: how wrong its answer is (0 is right), facts about it, and its texts."""

    wrongness: float
    facts: Mapping[str, str]
    texts: Sequence[Text]


@dataclass(frozen=True)
class Inspection:
    """What there is to see of a split.

    Attributes:
        tables: in the order of the page.
        examples: the most wrong ones, worst first; none that is right.
        measure: what their order is by.
    """

    tables: Sequence[Table] = ()
    examples: Sequence[Seen] = ()
    measure: str = ""


@dataclass
class MostWrong:
    """Keeps the numbers of the most wrong examples, so that only these are made into `Seen`."""

    wrongness: Sequence[float] | np.ndarray
    right: Sequence[bool] | np.ndarray
    kept: list[int] = field(init=False)

    def __post_init__(self):
        values = np.asarray(self.wrongness, np.float64)
        wrong = np.flatnonzero(~np.asarray(self.right, bool))
        values = np.where(np.isnan(values), np.inf, values)
        self.kept = wrong[np.argsort(-values[wrong], kind="stable")][:MOST_EXAMPLES].tolist()

    def seen(self, look: Callable[[int], tuple[Mapping[str, str], Sequence[Text]]]) -> list[Seen]:
        """Return these examples, worst first; `look` gives facts and texts of the example of a number."""
        return [Seen(float(self.wrongness[number]), *look(number)) for number in self.kept]


def shown(value: float) -> str:
    """Return a score in four decimals."""
    return f"{value:.4f}"


def cut(text: str) -> str:
    """Return a text that is not too long for the page."""
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " ..."


def texts_of(example: object) -> list[Text]:
    """Return the one text or both of an example with `text_a` and `text_b`."""
    pairs = ((name, getattr(example, name, None)) for name in ("text_a", "text_b"))
    return [Text(name, cut(text)) for name, text in pairs if text is not None]


def excerpt(text: str, marks: Sequence[Mark], around: int = 80) -> tuple[str, list[Mark]]:
    """Return the part of a text around its marks, and the marks within; without marks its beginning."""
    if len(text) <= MOST_CHARACTERS:
        return text, list(marks)
    begin = max(min((mark.begin for mark in marks), default=0) - around, 0)
    end = min(max((mark.end for mark in marks), default=0) + around, len(text))
    end = max(min(end, begin + 2 * MOST_CHARACTERS), min(begin + MOST_CHARACTERS, len(text)))
    before, behind = "... " * (begin > 0), " ..." * (end < len(text))
    shift = len(before) - begin
    moved = [
        mark._replace(begin=mark.begin + shift, end=min(mark.end, end) + shift) for mark in marks if mark.begin < end
    ]
    return f"{before}{text[begin:end]}{behind}", moved


def class_tables(labels: np.ndarray, predictions: np.ndarray, names: Sequence[str]) -> list[Table]:
    """Return the confusion matrix, and precision, recall and F1 of each class."""
    counts = confusion_matrix(labels, predictions, len(names))
    right, given, true = np.diag(counts), counts.sum(axis=0), counts.sum(axis=1)
    found = (right.tolist(), given.tolist(), true.tolist())
    rows = [rates(name, *each) for name, *each in zip(names, *found, strict=True)]
    return [_confusions(counts, names), *rates_table("Classes", rows)]


def rates_table(title: str, rows: Iterable[Sequence[str]]) -> list[Table]:
    """Return the table of `rates` of each name, or nothing where there are no rows."""
    rows = list(rows)
    note = f"the first {_MOST_ROWS} of {len(rows):,}" if len(rows) > _MOST_ROWS else ""
    columns = ("class", "precision", "recall", "F1", "true", "predicted")
    return [Table(title, columns, rows[:_MOST_ROWS], note)] if rows else []


def rates(name: str, right: int, given: int, true: int) -> list[str]:
    """Return a row of `rates_table` from how many of a class are right, were given, and are true; 0 for 0 / 0."""
    shares = [right / given if given else 0.0, right / true if true else 0.0]
    f1 = 2 * right / (given + true) if given + true else 0.0
    return [name, *map(shown, (*shares, f1)), f"{true:,}", f"{given:,}"]


def _confusions(counts: np.ndarray, names: Sequence[str]) -> Table:
    if len(names) <= _MOST_CLASSES:
        rows = [[name, *(f"{n:,}" for n in line)] for name, line in zip(names, counts.tolist(), strict=True)]
        return Table("Confusion matrix", ("true \\ predicted", *names), rows, is_matrix=True)
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CLASSES]
    pairs = [(int(place) // len(names), int(place) % len(names)) for place in order]
    rows = [[names[true], names[given], f"{wrong[true, given]:,}"] for true, given in pairs if wrong[true, given]]
    return Table("Most frequent confusions", ("true", "predicted", "examples"), rows)


def calibration_table(confidences: np.ndarray, right: np.ndarray, bins: int = 10) -> Table:
    """Return how often answers of about one confidence are right, with the expected calibration error."""
    error, found = calibration(confidences, right, bins)
    rows = [
        [f"{low:.1f} to {high:.1f}", f"{count:,}", shown(mean), shown(share)] for low, high, count, mean, share in found
    ]
    note = f"expected calibration error {error:.4f}: how far confidence and accuracy are apart, on the mean"
    return Table("Calibration", ("confidence", "examples", "mean confidence", "accuracy"), rows, note)


def all_alike(answers: Sequence[object]) -> bool:
    """Return whether there are several answers and all are the same."""
    return len(answers) > 1 and all(answer == answers[0] for answer in answers[1:])
