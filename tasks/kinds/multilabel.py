"""Any number of labels of a text or a pair of texts, the host half: separated in TAB files, a list in JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl.app import UsageError

from data.labelled import ClassificationDataset, encode_examples
from ground.words import did_you_mean
from tasks.datasets import HEADER_NAMES, DatasetRow
from tasks.found_labels import labels_in
from tasks.given import second_texts, text_or_pair
from tasks.inspection import Inspection, MostWrong, all_alike, calibration_table, rates, rates_table, shown, texts_of
from tasks.kinds import PRETRAINING_HEADS, HeadOptions, Prediction, Scores
from tasks.label_sets import LABEL_SET_METRICS, label_set_scores
from tasks.texts import text_records

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer
    from modeling.computation import Computation
    from modeling.config import Config
    from tasks.multilabel import MultilabelTask

verb = "run_classifier"
row_flags = {"threshold": "threshold"}
suffix = ".jsonl"
needs = ("labels", "label_separator")
header_names = {**HEADER_NAMES, "label": ("label", "labels", "tags", "categories")}
columns = tuple(header_names)
metrics = LABEL_SET_METRICS
smaller_is_better = ("loss",)
new_heads = ("classifier/.*", "pooled_layer_norm/.*")
unused_heads = PRETRAINING_HEADS
on_strings = "label_sets"


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text or a pair and its labels; none is an answer, None is where the file does not tell."""

    text_a: str
    text_b: str | None
    label: tuple[str, ...] | None


def complaint(row: DatasetRow) -> str:
    """Return what is wrong with the row: a label that the separator would cut, a threshold that is no probability."""
    cut = next((label for label in row.labels if row.label_separator in label), None)
    if cut is not None:
        return f"has the label_separator {row.label_separator!r} in its label {cut!r}; use another"
    if not 0 < row.threshold < 1:
        return f"has the threshold {row.threshold:g}; expected a probability between 0 and 1"
    return ""


def find_labels(row: DatasetRow, paths: Sequence[Path]) -> tuple[str, ...]:
    """Return every label that a cell of the training files names; raises `UsageError` as `tasks.found_labels` does."""
    return labels_in(row, paths, row.label_separator)


def read(row: DatasetRow, path: Path, *, need_labels: bool) -> list[LabelledText]:
    """Return all examples of a file in order; raises `UsageError` that names file and line."""
    examples = []
    for where, record in text_records(row, path, need_labels=need_labels):
        label = record.get("label")
        found = None if label is None else _label_set(row, where, label)
        examples.append(LabelledText(record["text_a"], record.get("text_b") if row.is_pair else None, found))
    return examples


def _label_set(row: DatasetRow, where: str, text: str) -> tuple[str, ...]:
    """Return the labels in the order of the row, each once."""
    named = [part.strip() for part in text.split(row.label_separator)]
    named = [row.label_names.get(part, part) for part in named if part]
    for label in named:
        if label not in (*row.labels, *row.ignored_labels):
            hint = did_you_mean(label, row.labels) or f"; expected some of {', '.join(row.labels)}"
            raise UsageError(f"{where}: label {label!r} is not a label of {row.name}{hint}")
    return tuple(label for label in row.labels if label in named)


def dataset(
    row: DatasetRow,
    examples: Sequence[LabelledText],
    tokenizer: Tokenizer,
    *,
    max_seq_length: int,
    batch_size: int,
    seed: int = 0,
) -> ClassificationDataset:
    """Tokenise the examples; labels become a row of 0 and 1, zeros where the file does not tell."""
    encoded = encode_examples(
        [example.text_a for example in examples],
        second_texts(row, examples),
        _matrix(row, examples).astype(np.int32),
        tokenizer,
        max_seq_length,
    )
    return ClassificationDataset(encoded, batch_size, max_seq_length, seed=seed)


def task(row: DatasetRow, config: Config, computation: Computation, head: HeadOptions) -> MultilabelTask:
    """Return a sigmoid for each label of the row."""
    from tasks.multilabel import MultilabelTask

    return MultilabelTask(
        config,
        len(row.labels),
        threshold=row.threshold,
        classifier_dropout=head.dropout,
        computation=computation,
        regularizers=head.regularizers,
    )


def answers(row: DatasetRow, predictions: Sequence[Prediction], examples: Sequence[LabelledText]) -> list[np.ndarray]:
    """Return the probability of each label of each example, float32 [C]."""
    return [prediction["probabilities"] for prediction in predictions]


def scores(row: DatasetRow, answers: Sequence[np.ndarray], examples: Sequence[LabelledText]) -> Scores:
    """Return the scores of the labels from the row's threshold on, and the mean cross-entropy of a label as `loss`."""
    probabilities, labels = np.stack(answers).astype(np.float64), _matrix(row, examples)
    loss = _losses(probabilities, labels).mean()
    return {**label_set_scores(labels, probabilities >= row.threshold), "loss": float(loss)}


def _losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(np.where(labels, probabilities, 1 - probabilities), 1e-30))


def lines(row: DatasetRow, answers: Sequence[np.ndarray], examples: Sequence[LabelledText]) -> Iterator[str]:
    """Yield a JSON object a line: labels found, each one's probability, the true labels where known, and the texts."""
    for index, (probabilities, example) in enumerate(zip(answers, examples, strict=True)):
        content: dict[str, Any] = {"index": index} | told(row, probabilities, example)
        if example.label is not None:
            content["label"] = list(example.label)
        content["text_a"] = example.text_a
        if example.text_b is not None:
            content["text_b"] = example.text_b
        yield json.dumps(content, ensure_ascii=False)


def example_of(row: DatasetRow, given: Any) -> LabelledText:
    """Return a text, or the two of a pair, as an example."""
    return LabelledText(*text_or_pair(row, given), None)


def told(row: DatasetRow, answer: np.ndarray, example: LabelledText) -> dict[str, Any]:
    """Return the labels from the row's threshold on, and the probability of every label."""
    chances = {label: round(float(p), 4) for label, p in zip(row.labels, answer, strict=True)}
    given = [label for label, p in zip(row.labels, answer, strict=True) if p >= row.threshold]
    return {"prediction": given, "probabilities": chances}


def degenerate(row: DatasetRow, answers: Sequence[np.ndarray], examples: Sequence[LabelledText]) -> str:
    """Return that all examples have the same labels, though the true ones differ."""
    given = [[label for label, p in zip(row.labels, each, strict=True) if p >= row.threshold] for each in answers]
    if all_alike(given) and not all_alike([example.label for example in examples]):
        return f"every answer is {', '.join(given[0]) or 'no label'}"
    return ""


def inspected(row: DatasetRow, answers: Sequence[np.ndarray], examples: Sequence[LabelledText]) -> Inspection:
    """Return the rates of each label, the calibration of all decisions, and the examples of the highest loss."""
    probabilities, labels = np.stack(answers).astype(np.float64), _matrix(row, examples)
    given, losses = probabilities >= row.threshold, _losses(probabilities, labels).sum(axis=1)
    counts = zip(*((each.sum(axis=0)).tolist() for each in (given & labels, given, labels)), strict=True)
    rows = [rates(name, *each) for name, each in zip(row.labels, counts, strict=True)]

    def named(chosen: np.ndarray) -> str:
        return ", ".join(label for label, is_one in zip(row.labels, chosen, strict=True) if is_one) or "none"

    def look(number: int):
        facts = {"index": f"{number:,}", "true": named(labels[number]), "predicted": named(given[number])}
        return {**facts, "loss": shown(losses[number])}, texts_of(examples[number])

    tables = [*rates_table("Labels", rows), calibration_table(probabilities.ravel(), labels.ravel())]
    worst = MostWrong(losses, (given == labels).all(axis=1)).seen(look)
    return Inspection(tables, worst, "by the loss of all labels")


def submitted(
    row: DatasetRow, answers: Sequence[np.ndarray], examples: Sequence[LabelledText]
) -> list[tuple[str | None, list[str]]]:
    """Return the labels of each example from the threshold on."""
    return [
        (None, [label for label, p in zip(row.labels, each, strict=True) if p >= row.threshold]) for each in answers
    ]


def _matrix(row: DatasetRow, examples: Sequence[LabelledText]) -> np.ndarray:
    return np.array([[label in (example.label or ()) for label in row.labels] for example in examples])
