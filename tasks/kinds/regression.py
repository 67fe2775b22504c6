"""A score of a text or a pair of texts, the host half: STS-B and any other file whose label is a number."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl.app import UsageError

from data.labelled import ClassificationDataset, encode_examples
from tasks.correlations import or_zero, pearson, spearman
from tasks.datasets import HEADER_NAMES, DatasetRow, Example
from tasks.given import second_texts, text_or_pair
from tasks.inspection import Inspection, MostWrong, shown, texts_of
from tasks.kinds import PRETRAINING_HEADS, HeadOptions, Prediction, Scores
from tasks.texts import text_records

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer
    from modeling.computation import Computation
    from modeling.config import Config
    from tasks.regression import RegressionTask

verb = "run_classifier"
suffix = ".jsonl"
needs = ()
header_names: Mapping[str, tuple[str, ...]] = {
    **HEADER_NAMES,
    "label": ("label", "score", "similarity", "similarity_score", "relatedness_score", "gold_score", "stars", "value"),
}
columns = tuple(header_names)
metrics = ("pearson", "spearman", "correlation")
smaller_is_better = ("loss",)
new_heads = ("classifier/.*", "pooled_layer_norm/.*")
unused_heads = PRETRAINING_HEADS
on_strings = "scores"
_NUMBER = re.compile(r"[+-]?(\d{1,17}(\.\d{0,40})?|\.\d{1,40})([eE][+-]?\d{1,2})?")


def number_of(row: DatasetRow, where: str, text: str) -> float:
    """Return the number that a label is; raises `UsageError` for no number, or one outside of the row's range."""
    if not _NUMBER.fullmatch(text.strip()):
        raise UsageError(f"{where}: label {text[:40]!r} is not a number; {row.name} is scored, as 3.8")
    value = float(text)
    if row.score_range and not row.score_range[0] <= value <= row.score_range[1]:
        low, high = row.score_range
        raise UsageError(f"{where}: label {text} is outside of {low:g} to {high:g}, the score_range of {row.name}")
    return value


def read(row: DatasetRow, path: Path, *, need_labels: bool) -> list[Example]:
    """Return all examples of a file in order; raises `UsageError` that names file and line."""
    examples = []
    for where, record in text_records(row, path, need_labels=need_labels):
        label = record.get("label")
        if label is not None:
            number_of(row, where, label)
        examples.append(Example(record["text_a"], record.get("text_b") if row.is_pair else None, label))
    return examples


def dataset(
    row: DatasetRow,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    max_seq_length: int,
    batch_size: int,
    seed: int = 0,
) -> ClassificationDataset:
    """Tokenise the examples; a label is its number, 0 where there is none."""
    encoded = encode_examples(
        [example.text_a for example in examples],
        second_texts(row, examples),
        _labels(examples),
        tokenizer,
        max_seq_length,
    )
    return ClassificationDataset(encoded, batch_size, max_seq_length, seed=seed)


def task(row: DatasetRow, config: Config, computation: Computation, head: HeadOptions) -> RegressionTask:
    """Return the squared error of one output."""
    from tasks.regression import RegressionTask

    return RegressionTask(
        config, classifier_dropout=head.dropout, computation=computation, regularizers=head.regularizers
    )


def answers(row: DatasetRow, predictions: Sequence[Prediction], examples: Sequence[Example]) -> list[float]:
    """Return the score of each example."""
    return [float(prediction["score"]) for prediction in predictions]


def scores(row: DatasetRow, answers: Sequence[float], examples: Sequence[Example]) -> Scores:
    """Return the correlations, their mean as `correlation`, and the mean squared error as `loss`.

    A correlation that is not defined is said on stderr and counts 0.
    """
    given, labels = np.array(answers), _labels(examples)
    found = {
        "pearson": or_zero("pearson", pearson(given, labels)),
        "spearman": or_zero("spearman", spearman(given, labels)),
    }
    return {**found, "correlation": sum(found.values()) / 2, "loss": float(np.square(given - labels).mean())}


def lines(row: DatasetRow, answers: Sequence[float], examples: Sequence[Example]) -> Iterator[str]:
    """Yield a JSON object a line: the score that was found, the true one where it is known, and the texts."""
    for index, (score, example) in enumerate(zip(answers, examples, strict=True)):
        content: dict[str, Any] = {"index": index} | told(row, score, example)
        if example.label is not None:
            content["label"] = float(example.label)
        content["text_a"] = example.text_a
        if example.text_b is not None:
            content["text_b"] = example.text_b
        yield json.dumps(content, ensure_ascii=False)


def example_of(row: DatasetRow, given: Any) -> Example:
    """Return a text, or the two of a pair, as an example."""
    return Example(*text_or_pair(row, given), None)


def told(row: DatasetRow, answer: float, example: Example) -> dict[str, Any]:
    """Return the score."""
    return {"score": round(answer, 6)}


def degenerate(row: DatasetRow, answers: Sequence[float], examples: Sequence[Example]) -> str:
    """Return that all answers are nearly the same number, though the true ones differ."""
    labels = _labels(examples)
    if len(answers) > 1 and np.ptp(answers) <= 1e-3 * np.ptp(labels) > 0:
        return f"every answer is about {answers[0]:.4g}"
    return ""


def inspected(row: DatasetRow, answers: Sequence[float], examples: Sequence[Example]) -> Inspection:
    """Return the examples whose score is farthest from the true one."""
    labels = _labels(examples)
    distances = np.abs(np.array(answers) - labels)

    def look(number: int):
        facts = {"index": f"{number:,}", "true": f"{labels[number]:g}", "predicted": shown(answers[number])}
        return facts, texts_of(examples[number])

    return Inspection((), MostWrong(distances, distances == 0).seen(look), "by the distance from the true score")


def submitted(row: DatasetRow, answers: Sequence[float], examples: Sequence[Example]) -> list[tuple[str | None, str]]:
    """Return the score of each example, within the row's range, as GLUE's STS-B.tsv has it; it has no ids."""
    low, high = row.score_range or (-np.inf, np.inf)
    return [(None, f"{min(max(score, low), high):.3f}") for score in answers]


def _labels(examples: Sequence[Example]) -> np.ndarray:
    return np.array([0.0 if example.label is None else float(example.label) for example in examples])
