"""What a user gives a trained model, a text, several texts or an object, as the columns that its kind reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from ground.documents import SURROGATE
from ground.words import did_you_mean

if TYPE_CHECKING:
    from tasks.datasets import DatasetRow

_SHOWN_CHARACTERS = 60


class LackingError(UsageError):
    """An input without columns that its model reads; says which it reads.

    Attributes:
        wanted, optional, lists: as `columns_of` has them.
    """

    def __init__(self, message: str, wanted: Sequence[str], optional: Sequence[str], lists: Sequence[str]):
        super().__init__(message)
        self.wanted, self.optional, self.lists = tuple(wanted), tuple(optional), tuple(lists)


def columns_of(
    row: DatasetRow, given: Any, wanted: Sequence[str], *, optional: Sequence[str] = (), lists: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the columns of one input by name.

    An object names its columns as files of the row do (`DatasetRow.header_names`); what else the row's files have, such
    as a label, is passed over.

    Example: wanted text_a, text_b
        ("a", "b"), ["a", "b"], {"sentence1": "a", "sentence2": "b"}  ->  {"text_a": "a", "text_b": "b"}

    Args:
        row: of the model's task.
        given: a text, a list of texts, or an object.
        wanted: columns that the model reads, in the order of a list.
        optional: further ones.
        lists: columns that are lists of texts.

    Raises:
        UsageError: the input is something else, lacks a column, or has an empty text.
    """
    columns = (*wanted, *optional)
    if isinstance(given, str):
        found: dict[str, Any] = {columns[0]: given}
    elif isinstance(given, Mapping):
        found = _named(row, given, columns)
    elif isinstance(given, Sequence) and not isinstance(given, bytes) and len(given) <= len(columns):
        found = dict(zip(columns, given, strict=False))
    else:
        raise UsageError(f"{_shown(given)} is no input; expected {_expected(columns, optional)}")
    if lacking := [column for column in wanted if column not in found]:
        message = f"{_shown(given)} has no {' and no '.join(lacking)}; expected {_expected(columns, optional)}"
        raise LackingError(message, wanted, optional, lists)
    for column, value in found.items():
        for text in value if column in lists and isinstance(value, Sequence) and value else [value]:
            _check_text(column, text)
        if column in lists and isinstance(value, str):
            raise UsageError(f"{column} is the text {_shown(value)}; expected a list of texts")
    return found


def _named(row: DatasetRow, given: Mapping[Any, Any], columns: Sequence[str]) -> dict[str, Any]:
    """Return the wanted columns of an object, each by the first of its names that is there."""
    names = row.header_names
    found = {}
    for column in columns:
        key = next((name for name in (column, *names.get(column, ())) if name in given), None)
        if key is not None and given[key] is not None:
            found[column] = given[key]
    known = {"id", "index", *names, *(name for each in names.values() for name in each)}
    for key in given:
        if key not in known:
            hint = did_you_mean(str(key), known) or f"; expected {', '.join(columns)}"
            raise UsageError(f"{_shown(given)} has the unknown key {str(key)[:_SHOWN_CHARACTERS]!r}{hint}")
    return found


def _check_text(column: str, text: Any) -> None:
    if not isinstance(text, str):
        raise UsageError(f"{column} is {_shown(text)}; expected text")
    if SURROGATE.search(text):
        raise UsageError(f"{column} is no Unicode (half of a surrogate pair): decode its bytes as UTF-8")
    if not text.strip():
        raise UsageError(f"{column} is empty; expected text")


def _expected(columns: Sequence[str], optional: Sequence[str]) -> str:
    told = ", ".join(f"{column} if you like" if column in optional else column for column in columns)
    return f"a text: {told}" if len(columns) == 1 else f"a list or an object of {told}"


def _shown(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def text_or_pair(row: DatasetRow, given: Any) -> tuple[str, str | None]:
    """Return the text, or the two texts, of one input; a row whose `text_b` is optional takes either."""
    either = [column for column in ("text_b",) if column in row.optional]
    found = columns_of(row, given, ["text_a", *(["text_b"] if row.is_pair and not either else [])], optional=either)
    return found["text_a"], found.get("text_b")


def second_texts(row: DatasetRow, examples: Sequence[Any]) -> list[str] | None:
    """Return the second text of every example; None for single texts. Raises `UsageError` where some have none."""
    if "text_b" not in row.optional:
        return [example.text_b or "" for example in examples] if row.is_pair else None
    found = [example.text_b for example in examples if example.text_b is not None]
    if found and len(found) < len(examples):
        raise UsageError(
            f"{len(found):,} of {len(examples):,} inputs are pairs; give texts and pairs in calls of their own"
        )
    return found or None
