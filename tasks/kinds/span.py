"""Answers that are cut from a text, the host half (BERT section 4.2 and 4.3): SQuAD 1.1 and 2.0, CMRC 2018, DRCD.

A text that is longer than a row is read in windows with overlap. A window without the answer trains to [CLS]. Of all
windows the pairs of a first and a last token with the highest sum of logits are the candidates; the text of an answer
is cut from the context as it was given. Differs from BERT's script in that every window may give any of its tokens:
there, a token is only answered by the window with most text around it, which loses answers that this one cuts.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl.app import UsageError

from data.windows import WindowedDataset, Windows, encode_windows
from tasks.datasets import DatasetRow
from tasks.given import columns_of
from tasks.inspection import Inspection, Mark, MostWrong, Text, all_alike, cut, excerpt, shown
from tasks.kinds import PRETRAINING_HEADS, HeadOptions, Prediction, Scores
from tasks.readers import find_reader
from tasks.span_scores import SCORINGS, SPAN_METRICS, best_thresholds, compared, span_scores

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer
    from modeling.computation import Computation
    from modeling.config import Config
    from tasks.span import SpanTask

verb = "run_classifier"
needs = ("scoring",)
header_names: Mapping[str, tuple[str, ...]] = {name: (name,) for name in ("id", "question", "context", "answers")}
columns = tuple(header_names)
metrics = by_language = SPAN_METRICS
new_heads = ("span/.*", "span_layer_norm/.*")
unused_heads = PRETRAINING_HEADS
on_strings = "spans"
flags = (
    "doc_stride",
    "max_query_length",
    "n_best_size",
    "max_answer_length",
    "null_score_diff_threshold",
    "version_2_with_negative",
)
suffix = ".json"
head = "span"
UNKNOWN = -1
MAX_ANSWER_TOKENS = 30
N_BEST_TOLD = 5
"""Candidates that a served model tells beside its answer."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question on a text.

    Attributes:
        id: by which answers are scored.
        question: as it is asked.
        context: the text.
        answers: each with its first character in the context, -1 where it is unknown; none for a question without
            answer, None where the file does not tell (a test file).
        mended: answers that were found elsewhere than the file says.
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...] | None
    mended: int = 0

    @property
    def label(self) -> tuple[tuple[str, int], ...] | None:
        """What is to be found."""
        return self.answers

    @property
    def texts(self) -> list[str]:
        """The answers that are right, for scores."""
        return [text for text, _ in self.answers or ()]

    @property
    def place(self) -> tuple[int, int] | None:
        """First character of the answer to learn from and the one behind it; None where no answer has a known place."""
        return next(((start, start + len(text)) for text, start in self.answers or () if start != UNKNOWN), None)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible answer: characters of the context, and the sum of the logits of its ends."""

    begin: int
    end: int
    start_logit: float
    end_logit: float

    @property
    def score(self) -> float:
        return self.start_logit + self.end_logit


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to a question.

    Attributes:
        text: cut from the context; empty for no answer.
        best: the best text, also where the answer is none.
        n_best: the candidates with their probabilities among each other, best first.
        null_difference: score of no answer less that of the best text.
    """

    text: str
    best: str
    n_best: tuple[dict[str, Any], ...]
    null_difference: float


def read(row: DatasetRow, path: Path, *, need_labels: bool) -> list[Question]:
    """Return all questions of a file in order.

    An answer that is not where the file says is looked for: the place nearest to the one that is told, or the only one.

    Raises:
        UsageError: the file is no file of questions, an empty context, a missing answer, an id that comes twice; the
            place in the file is named. A question may be empty, as one of CMRC 2018 is.
    """
    examples, seen = [], set()
    for where, record in find_reader(row.format).records(row, path):
        if not record["context"].strip():
            raise UsageError(f"{where}: the context is empty; expected a text that holds the answer")
        if record["id"] in seen:
            raise UsageError(f"{where}: the id {record['id']!r} comes twice; answers are told apart by it")
        seen.add(record["id"])
        answers = record["answers"]
        if answers is None and need_labels:
            raise UsageError(f"{where}: no answers; training and evaluation need them, or is_impossible")
        given = Question(record["id"], record["question"], record["context"], None)
        examples.append(given if answers is None else _placed(given, answers))
    if not examples:
        raise UsageError(f"{path} holds no question: expected data[].paragraphs[].qas[]")
    return examples


def _placed(asked: Question, answers: Sequence[tuple[str, int]]) -> Question:
    """Return the question with its answers where they are in the context."""
    found, mended = [], 0
    for text, start in answers:
        place = find_answer(asked.context, text, start)
        mended += place not in (start, UNKNOWN)
        found.append((text, place))
    return replace(asked, answers=tuple(found), mended=mended)


def find_answer(context: str, text: str, start: int) -> int:
    """Return the first character of the answer: at `start`, nearest to it or, where that is negative, the only one.

    -1 where the context does not hold the text, or holds it several times and nobody knows which is meant.
    """
    if not text:
        return UNKNOWN
    if start >= 0 and context.startswith(text, start):
        return start
    places, place = [], context.find(text)
    while place >= 0:
        places.append(place)
        place = context.find(text, place + 1)
    if start < 0:
        return places[0] if len(places) == 1 else UNKNOWN
    return min(places, key=lambda each: abs(each - start), default=UNKNOWN)


def notes(row: DatasetRow, examples: Sequence[Question]) -> str:
    """Return how many questions are empty, and how many answers not where the file says; empty for none."""
    mended = sum(each.mended for each in examples)
    unknown = sum(bool(each.answers) and each.place is None for each in examples)
    empty = sum(not each.question.strip() for each in examples)
    parts = [f"{empty:,} empty questions"] if empty else []
    parts += [f"{mended:,} answers found at another place than is told"] if mended else []
    parts += [f"{unknown:,} questions whose answer has no known place, which train nothing"] if unknown else []
    return ", ".join(parts)


def dataset(
    row: DatasetRow,
    examples: Sequence[Question],
    tokenizer: Tokenizer,
    *,
    max_seq_length: int,
    batch_size: int,
    seed: int = 0,
    doc_stride: int | None = None,
    max_query_length: int = 64,
    version_2_with_negative: bool = False,
    **answering: Any,
) -> WindowedDataset:
    """Tokenise questions and contexts; long contexts become several windows, `doc_stride` tokens apart.

    Raises:
        UsageError: a question without answer, where none may be answered so.
    """
    without = [each.id for each in examples if each.answers is not None and not each.answers]
    if without and not (version_2_with_negative or row.no_answer):
        raise UsageError(
            f"{len(without):,} questions of --task_name={row.name} have no answer, as {without[0]!r}: give "
            "--version_2_with_negative, or a task with no_answer, as squad_v2"
        )
    windows = encode_windows(
        [each.question for each in examples],
        [each.context for each in examples],
        tokenizer,
        max_seq_length,
        stride=doc_stride,
        max_query_length=max_query_length,
    )
    labels = _labels(windows, examples)
    longest = answering.get("max_answer_length", MAX_ANSWER_TOKENS)
    return WindowedDataset(
        replace(windows.rows, labels=labels),
        batch_size,
        max_seq_length,
        seed=seed,
        windows=windows,
        notes=_out_of_reach(windows, examples, labels, longest),
    )


def _out_of_reach(windows: Windows, examples: Sequence[Question], labels: np.ndarray, longest: int) -> str:
    """Return how many answers no window holds, or hold more tokens than an answer may have; empty for none."""
    known = np.array([each.place is not None for each in examples])
    held = np.zeros(len(examples), bool)
    held[windows.example[labels[:, 0] > 0]] = True
    long = np.zeros(len(examples), bool)
    long[windows.example[labels[:, 1] - labels[:, 0] >= longest]] = True
    split, long_ones = int((known & ~held).sum()), int(long.sum())
    parts = [f"{split:,} answers that no window holds whole"] if split else []
    parts += [f"{long_ones:,} answers longer than --max_answer_length={longest} tokens"] if long_ones else []
    return ", ".join(parts)


def _labels(windows: Windows, examples: Sequence[Question]) -> np.ndarray:
    """Return the places in each row of the first and the last token of the answer, int32 [R, 2].

    0 where the window does not hold the whole answer, and -1 where its place is unknown.
    """
    tokens = np.full((len(examples), 2), -1, np.int64)
    unknown = np.zeros(len(examples), bool)
    for number, each in enumerate(examples):
        place = each.place
        if place is None:
            unknown[number] = bool(each.answers) or each.answers is None
            continue
        text = windows.text_of[number]
        span = slice(windows.encoding.splits[text], windows.encoding.splits[text + 1])
        first = np.searchsorted(windows.encoding.ends[span], place[0], side="right")
        last = np.searchsorted(windows.encoding.starts[span], place[1], side="left") - 1
        unknown[number] = first > last  # the tokenizer drops all of it
        tokens[number] = first, last
    inside = tokens[windows.example] - windows.first[:, None]
    whole = (inside[:, 0] >= 0) & (inside[:, 1] < windows.count) & (tokens[windows.example, 0] >= 0)
    labels = np.where(whole[:, None], inside + windows.offset[:, None], 0)
    labels[unknown[windows.example]] = UNKNOWN
    return labels.astype(np.int32)


def task(row: DatasetRow, config: Config, computation: Computation, head: HeadOptions) -> SpanTask:
    """Return a softmax over the tokens of a row for either end of the answer."""
    from tasks.span import SpanTask

    return SpanTask(config, dropout=head.dropout, computation=computation, regularizers=head.regularizers)


def answers(
    row: DatasetRow,
    predictions: Sequence[Prediction],
    examples: Sequence[Question],
    *,
    n_best_size: int = 20,
    max_answer_length: int = MAX_ANSWER_TOKENS,
    null_score_diff_threshold: float = 0.0,
    version_2_with_negative: bool = False,
    **encoding: Any,
) -> list[Answered]:
    """Return the answer to every question, from all its windows.

    Where a question may have none, the answer is empty if the least score of [CLS] over the windows exceeds that of the
    best text by more than the threshold.
    """
    rows: list[list[Prediction]] = [[] for _ in examples]
    for prediction in predictions:
        rows[prediction["window"].example].append(prediction)
    nothing = null_score_diff_threshold if version_2_with_negative or row.no_answer else None
    return [
        _answer(each, example.context, n_best_size, max_answer_length, nothing)
        for each, example in zip(rows, examples, strict=True)
    ]


def _answer(
    rows: Sequence[Prediction], context: str, n_best_size: int, max_answer_length: int, threshold: float | None
) -> Answered:
    candidates: dict[str, Candidate] = {}
    for candidate in sorted(
        (
            _with_marks(context, each)
            for prediction in rows
            for each in candidates_of(prediction, n_best_size, max_answer_length)
        ),
        key=lambda each: (-each.score, each.begin, each.end),
    ):
        candidates.setdefault(context[candidate.begin : candidate.end], candidate)
        if len(candidates) == n_best_size:
            break
    null = min(rows, key=lambda each: float(each["start_logits"][0] + each["end_logits"][0]))
    nothing = Candidate(0, 0, float(null["start_logits"][0]), float(null["end_logits"][0]))
    best = next(iter(candidates), "")
    difference = nothing.score - candidates[best].score if candidates else 0.0
    text = "" if threshold is not None and difference > threshold else best
    if threshold is not None or not candidates:
        candidates[""] = nothing
    return Answered(text, best, _n_best(candidates), difference)


def _with_marks(context: str, found: Candidate) -> Candidate:
    """Return the candidate with the combining marks behind it, which tokenizers drop and which belong to its letter."""
    end = found.end
    while end < len(context) and unicodedata.combining(context[end]):
        end += 1
    return found if end == found.end else replace(found, end=end)


def candidates_of(prediction: Prediction, n_best_size: int, max_answer_length: int) -> list[Candidate]:
    """Return the best pairs of one window: either end among the best `n_best_size` of its sort, in order, and short."""
    window = prediction["window"]
    context = slice(window.offset, window.offset + len(window.starts))
    starts, ends = prediction["start_logits"][context], prediction["end_logits"][context]
    first, last = _highest(starts, n_best_size), _highest(ends, n_best_size)
    length = last[None, :] - first[:, None] + 1
    a, b = np.nonzero((length >= 1) & (length <= max_answer_length))
    a, b = first[a], last[b]
    chosen = _highest(starts[a] + ends[b], n_best_size)
    return [
        Candidate(int(window.starts[i]), int(window.ends[j]), float(starts[i]), float(ends[j]))
        for i, j in zip(a[chosen], b[chosen], strict=True)
        if window.starts[i] < window.ends[j]
    ]


def _highest(values: np.ndarray, count: int) -> np.ndarray:
    """Return the numbers of the highest values, best first; of equal ones the first."""
    if len(values) > 4 * count:
        least = np.partition(values, -count)[-count]
        near = np.flatnonzero(values >= least)
        return near[np.argsort(-values[near], kind="stable")][:count]
    return np.argsort(-values, kind="stable")[:count]


def _n_best(candidates: Mapping[str, Candidate]) -> tuple[dict[str, Any], ...]:
    scores = np.array([each.score for each in candidates.values()])
    chances = np.exp(scores - scores.max())
    chances /= chances.sum()
    order = np.argsort(-scores, kind="stable")
    named = list(candidates.items())
    return tuple(
        {
            "text": named[i][0],
            "probability": float(chances[i]),
            "start_logit": named[i][1].start_logit,
            "end_logit": named[i][1].end_logit,
            "begin": named[i][1].begin,
            "end": named[i][1].end,
        }
        for i in order.tolist()
    )


def scores(row: DatasetRow, answers: Sequence[Answered], examples: Sequence[Question]) -> Scores:
    """Return exact match and F1 by the rules of the row; where questions have no answer also what a threshold gives."""
    scoring, right = SCORINGS[row.scoring], [example.texts for example in examples]
    found = span_scores(scoring, [each.text for each in answers], right)
    if not all(right):
        differences = [each.null_difference for each in answers]
        found |= best_thresholds(scoring, [each.best for each in answers], differences, right)
    return found


def lines(row: DatasetRow, answers: Sequence[Answered], examples: Sequence[Question]) -> Iterator[str]:
    """Yield one JSON object, as the scripts of SQuAD and CMRC read it and as CLUE takes it: id -> text."""
    yield _object({example.id: answer.text for answer, example in zip(answers, examples, strict=True)})


def example_of(row: DatasetRow, given: Any) -> Question:
    """Return a question on a text as an example."""
    found = columns_of(row, given, ("question", "context"))
    return Question("", found["question"], found["context"], None)


def told(row: DatasetRow, answer: Answered, example: Question) -> dict[str, Any]:
    """Return the answer, its characters in the context and its probability among the candidates; no answer is "".

    `n_best` are the likeliest candidates in the same form, best first; no answer is always among them where it is one.
    """
    found = next(each for each in answer.n_best if each["text"] == answer.text)
    others = [each for number, each in enumerate(answer.n_best) if number < N_BEST_TOLD or not each["text"]]
    return {**_candidate_told(found), "n_best": [_candidate_told(each) for each in others]}


def _candidate_told(found: Mapping[str, Any]) -> dict[str, Any]:
    place = (found["begin"], found["end"]) if found["text"] else (None, None)
    probability = round(found["probability"], 6)
    return {"answer": found["text"], "begin": place[0], "end": place[1], "probability": probability}


def foreign_row(labels: Sequence[str], count: int) -> DatasetRow:
    """Return the row of a reader of answers that another program made."""
    return DatasetRow(
        name="span",
        columns=("question", "context", "answers"),
        metric="f1",
        files={},
        kind="span",
        scoring=next(iter(SCORINGS)),
    )


def group(example: Question) -> str:
    """Return the text of a question: all about one text stay together where a share of them is held out."""
    return example.context


def submitted(row: DatasetRow, answers: Sequence[Answered], examples: Sequence[Question]) -> list[tuple[str, str]]:
    """Return the id of each question and the answer, empty for none."""
    return [(example.id, answer.text) for answer, example in zip(answers, examples, strict=True)]


def files(
    row: DatasetRow, split: str, answers: Sequence[Answered], examples: Sequence[Question]
) -> dict[str, str | bytes]:
    """Return further files by the end of their name: the candidates and, where there may be no answer, its odds."""
    pairs = list(zip(answers, examples, strict=True))
    found: dict[str, str | bytes] = {"nbest_predictions.json": _object({e.id: list(a.n_best) for a, e in pairs}) + "\n"}
    if any(not example.texts for example in examples) or row.no_answer:
        found["null_odds.json"] = _object({e.id: a.null_difference for a, e in pairs}) + "\n"
    return found


def _object(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, indent=1)


def degenerate(row: DatasetRow, answers: Sequence[Answered], examples: Sequence[Question]) -> str:
    """Return that no question is answered though some have an answer, or all alike, or none has a part right."""
    texts, right = [each.text for each in answers], [example.texts for example in examples]
    if not any(right):
        return ""
    if not any(texts):
        return "every question is left without answer"
    if all_alike(texts) and not all_alike(right):
        return f"every answer is {texts[0][:40]!r}"
    scoring = SCORINGS[row.scoring]
    some = any(compared(scoring, text, golds)[1] for text, golds in zip(texts, right, strict=True))
    return "" if some else "no answer has a part right"


def inspected(row: DatasetRow, answers: Sequence[Answered], examples: Sequence[Question]) -> Inspection:
    """Return the questions with the least F1, the more certain ones first, with both answers marked in the text."""
    scoring = SCORINGS[row.scoring]
    pairs = list(zip(answers, examples, strict=True))
    f1 = np.array([compared(scoring, answer.text, example.texts)[1] for answer, example in pairs])
    chances = np.array(
        [next((each["probability"] for each in a.n_best if each["text"] == a.text), 0.0) for a in answers]
    )

    def look(number: int):
        answer, example = answers[number], examples[number]
        facts = {"id": example.id, "true": " | ".join(dict.fromkeys(example.texts)) or "no answer"}
        facts |= {
            "predicted": answer.text or "no answer",
            "F1": shown(f1[number]),
            "probability": shown(chances[number]),
        }
        found = next((each for each in answer.n_best if each["text"] == answer.text and answer.text), None)
        marks = [Mark(found["begin"], found["end"], "predicted", f1[number] == 1)] if found else []
        if example.place:
            marks.insert(0, Mark(*example.place, "true"))
        return facts, [Text("question", cut(example.question)), Text("text", *excerpt(example.context, marks))]

    order = (1 - f1) * 2 + chances  # the less is right, then the more certain
    return Inspection((), MostWrong(order, f1 == 1).seen(look), "by F1, then by the probability of the answer")
