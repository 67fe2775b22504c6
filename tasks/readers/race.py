"""RACE (Lai et al. 2017): a JSON object a file, {"article", "questions", "options", "answers": ["B", ...], "id"}.

The files of middle and high schools lie in folders of these names, by which questions are scored too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from absl.app import UsageError

from tasks.readers.choices import record_of, whole_json

if TYPE_CHECKING:
    from tasks.datasets import DatasetRow

LEVELS = ("middle", "high")


class _Article(TypedDict):
    article: str
    questions: list[str]
    options: list[list[str]]
    answers: NotRequired[list[str]]
    id: NotRequired[str]


def records(row: DatasetRow, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every question of the article; newlines in texts become spaces."""
    fields = whole_json(row, path, _Article, "an article of RACE")
    questions, options = fields["questions"], fields["options"]
    answers = fields.get("answers") or [None] * len(questions)
    if not len(questions) == len(options) == len(answers):
        sizes = f"{len(questions)} questions, {len(options)} lists of options and {len(answers)} answers"
        raise UsageError(f"{path}: {sizes}; expected as many of each")
    group = path.parent.name if path.parent.name in LEVELS else ""
    article = " ".join(fields["article"].split())
    for number, (question, choices, answer) in enumerate(zip(questions, options, answers, strict=True)):
        where = f"{path}: $.questions[{number}]"
        question, choices = " ".join(question.split()), [" ".join(each.split()) for each in choices]
        name = f"{fields.get('id', path.name)}-{number}"
        yield where, record_of(where, article, question, choices, answer, name=name, group=group)
