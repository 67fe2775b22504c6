"""C3 (Sun et al. 2020): one JSON list of [[turn, ...], [{"question", "choice", "answer"}, ...], id] a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from tasks.readers.choices import record_of, whole_json

if TYPE_CHECKING:
    from tasks.datasets import DatasetRow


class _Question(TypedDict):
    question: str
    choice: list[str]
    answer: NotRequired[str]


def records(row: DatasetRow, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every question of every text; the turns of a dialogue are joined by spaces."""
    what = "C3's list of [[turns], [questions], id]"
    texts = whole_json(row, path, list[tuple[list[str], list[_Question], str | int]], what)
    for number, (turns, questions, name) in enumerate(texts):
        for place, asked in enumerate(questions):
            where = f"{path}: $[{number}][1][{place}]"
            choices = asked["choice"]
            context, answer = " ".join(turns), asked.get("answer")
            yield where, record_of(where, context, asked["question"], choices, answer, name=f"{name}-{place}")
