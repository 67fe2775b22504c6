"""Questions on paragraphs in SQuAD's JSON (Rajpurkar et al. 2016, 2018), or in the original form of CMRC 2018.

{"data": [{"paragraphs": [{"context": "...", "qas": [{"id": "1", "question": "...", "answers": [...]}]}]}]}
[{"context_id": "...", "context_text": "...", "qas": [{"query_id": "...", "query_text": "...", "answers": ["..."]}]}]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from ground.documents import check_shape, read_json

if TYPE_CHECKING:
    from tasks.datasets import DatasetRow

_FIX = "expected SQuAD's form: data[].paragraphs[].{context, qas[].{id, question, answers[].{text, answer_start}}}"
# SQuAD 2.0's training file has 40 MiB.
MAX_BYTES = 1 << 30


class _Answer(TypedDict):
    text: str
    answer_start: NotRequired[int]


class _Question(TypedDict):
    id: str | int
    question: str
    answers: NotRequired[list[_Answer]]
    is_impossible: NotRequired[bool]


class _Paragraph(TypedDict):
    context: str
    qas: list[_Question]


class _Article(TypedDict):
    paragraphs: list[_Paragraph]


class _Squad(TypedDict):
    data: list[_Article]


class _OldQuestion(TypedDict):
    query_id: str
    query_text: str
    answers: NotRequired[list[str]]


class _OldParagraph(TypedDict):
    context_text: str
    qas: list[_OldQuestion]


def records(row: DatasetRow, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of every question with `id`, `question`, `context` and `answers`.

    Answers are (text, first character), -1 where the file does not tell it; none where there is none, and None where
    the file has no answers.

    Raises:
        UsageError: the file is not of this form; the place in it is named.
    """
    value = read_json(path, what="a file of questions", fix=_FIX, max_bytes=MAX_BYTES)
    if isinstance(value, list):
        check_shape(value, list[_OldParagraph], where=str(path), fix=_FIX)
        yield from _old(path, value)
        return
    check_shape(value, _Squad, where=str(path), fix=_FIX)
    for a, article in enumerate(value["data"]):
        for p, paragraph in enumerate(article["paragraphs"]):
            for q, asked in enumerate(paragraph["qas"]):
                answers: Any = None
                if asked.get("is_impossible"):
                    answers = []  # plausible answers are none
                elif "answers" in asked and (asked["answers"] or "is_impossible" in asked):
                    answers = [(each["text"], each.get("answer_start", -1)) for each in asked["answers"]]
                where = f"{path}: $.data[{a}].paragraphs[{p}].qas[{q}]"
                yield where, _record(asked["id"], asked["question"], paragraph["context"], answers)


def _old(path: Path, paragraphs: Sequence[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for p, paragraph in enumerate(paragraphs):
        for q, asked in enumerate(paragraph["qas"]):
            texts = asked.get("answers")
            answers = [(text, -1) for text in texts] if texts else None
            where = f"{path}: $[{p}].qas[{q}]"
            yield where, _record(asked["query_id"], asked["query_text"], paragraph["context_text"], answers)


def _record(name: str | int, question: str, context: str, answers: Any) -> dict[str, Any]:
    return {"id": str(name), "question": question, "context": context, "answers": answers}
