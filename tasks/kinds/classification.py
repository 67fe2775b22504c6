"""Classification of a text or a pair of texts, the host half: labels to ids, probabilities to scores and lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from data.labelled import ClassificationDataset, EncodedGroups, GroupedDataset, encode_examples
from tasks.datasets import HEADER_NAMES, DatasetRow, Example, read_examples
from tasks.found_labels import labels_in
from tasks.given import second_texts, text_or_pair
from tasks.inspection import Inspection, MostWrong, calibration_table, class_tables, shown, texts_of
from tasks.kinds import PRETRAINING_HEADS, HeadOptions, Prediction, Scores
from tasks.metrics import CLASSIFICATION_METRICS, classification_scores

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer
    from modeling.computation import Computation
    from modeling.config import Config
    from tasks.classification import ClassificationTask
    from tasks.plug_in import PlugInTask

verb = "run_classifier"
needs = ("labels",)
columns = tuple(HEADER_NAMES)
header_names = HEADER_NAMES
metrics = CLASSIFICATION_METRICS
smaller_is_better = ("loss",)
row_flags = {
    "plug_in": "plug_in",
    "domain_column": "domain",
    "method": "kind",
    "pattern": "pattern",
    "verbalizer": "verbalizer",
}
kept = ("kind", "pattern", "verbalizer", "prompt")
new_heads = ("classifier/.*", "pooled_layer_norm/.*", "crossed_pooler/.*")
unused_heads = PRETRAINING_HEADS
on_strings = "classes"
head = "classifier"
read = read_examples
find_labels = labels_in


def complaint(row: DatasetRow) -> str:
    """Return what is wrong with the row: a score that its labels do not give."""
    is_wrong = row.metric == "f1" and len(row.labels) not in (0, 2)
    return "has the metric f1, which is of two labels; use macro_f1" if is_wrong else ""


def dataset(
    row: DatasetRow,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    max_seq_length: int,
    batch_size: int,
    seed: int = 0,
) -> ClassificationDataset:
    """Tokenise the examples; a label becomes its index in the row, -1 where there is none.

    With `plug_in` an example has two rows, its own and that of its partner in another language.
    """
    if row.plug_in:
        return _paired(row, examples, tokenizer, max_seq_length, batch_size, seed)
    encoded = encode_examples(
        [example.text_a for example in examples],
        second_texts(row, examples),
        [row.labels.index(example.label) if example.label is not None else -1 for example in examples],
        tokenizer,
        max_seq_length,
    )
    return ClassificationDataset(encoded, batch_size, max_seq_length, seed=seed)


def _paired(
    row: DatasetRow, examples: Sequence[Example], tokenizer: Tokenizer, max_seq_length: int, batch_size: int, seed: int
) -> GroupedDataset:
    sides = [side for example in examples for side in (example, example.partner or example)]
    rows = encode_examples(
        [side.text_a for side in sides],
        [side.text_b or "" for side in sides] if row.is_pair else None,
        [-1] * len(sides),
        tokenizer,
        max_seq_length,
    )
    labels = [row.labels.index(example.label) if example.label is not None else -1 for example in examples]
    groups = EncodedGroups(rows, np.arange(0, len(sides) + 1, 2), np.array(labels, np.int32))
    return GroupedDataset(groups, batch_size, max_seq_length, seed=seed)


def task(
    row: DatasetRow, config: Config, computation: Computation, head: HeadOptions
) -> ClassificationTask | PlugInTask:
    """Return a softmax over the labels of the row, of one text or of one beside its translation."""
    from tasks.classification import ClassificationTask
    from tasks.plug_in import PlugInTask

    return (PlugInTask if row.plug_in else ClassificationTask)(
        config,
        len(row.labels),
        classifier_dropout=head.dropout,
        computation=computation,
        regularizers=head.regularizers,
    )


def answers(row: DatasetRow, predictions: Sequence[Prediction], examples: Sequence[Example]) -> list[np.ndarray]:
    """Return the probabilities of each example, float32 [C]."""
    return [prediction["probabilities"] for prediction in predictions]


def scores(row: DatasetRow, answers: Sequence[np.ndarray], examples: Sequence[Example]) -> Scores:
    """Return the scores of the most probable labels, and the mean cross-entropy in nats as `loss`."""
    probabilities, labels = np.stack(answers), _labels(row, examples)
    loss = _losses(probabilities, labels).mean()
    return {**classification_scores(labels, probabilities.argmax(axis=1), len(row.labels)), "loss": float(loss)}


def _labels(row: DatasetRow, examples: Sequence[Example]) -> np.ndarray:
    return np.array([row.labels.index(example.label or "") for example in examples])


def _losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-30))


def lines(row: DatasetRow, answers: Sequence[np.ndarray], examples: Sequence[Example]) -> Iterator[str]:
    """Yield, per example, the predicted label, its probability, the true label and the texts, TAB separated."""
    yield "index\tprediction\tconfidence\tlabel\ttext_a\ttext_b"
    for index, (probabilities, example) in enumerate(zip(answers, examples, strict=True)):
        best = int(probabilities.argmax())
        texts = (example.label or "", example.text_a, example.text_b or "")
        yield "\t".join([str(index), row.labels[best], f"{probabilities[best]:.4f}", *texts])


def files(
    row: DatasetRow, split: str, answers: Sequence[np.ndarray], examples: Sequence[Example]
) -> dict[str, str | bytes]:
    """Return `predictions.jsonl`: a JSON object a line with the probability of every label, beside the TAB file."""
    found = []
    for index, (probabilities, example) in enumerate(zip(answers, examples, strict=True)):
        content: dict[str, Any] = {"index": index}
        if example.id is not None:
            content["id"] = example.id
        content |= told(row, probabilities, example)
        if example.label is not None:
            content["label"] = example.label
        content["text_a"] = example.text_a
        if example.text_b is not None:
            content["text_b"] = example.text_b
        found.append(json.dumps(content, ensure_ascii=False) + "\n")
    return {"predictions.jsonl": "".join(found)}


def example_of(row: DatasetRow, given: Any) -> Example:
    """Return a text, or the two of a pair, as an example; a row may take either."""
    return Example(*text_or_pair(row, given), None)


def told(row: DatasetRow, answer: np.ndarray, example: Example) -> dict[str, Any]:
    """Return the most probable label, and the probability of every label."""
    best = int(answer.argmax())
    chances = zip(row.labels, answer.tolist(), strict=True)
    return {
        "prediction": row.labels[best],
        "confidence": round(float(answer[best]), 6),
        "probabilities": {label: round(chance, 6) for label, chance in chances},
    }


def foreign_row(labels: Sequence[str], count: int) -> DatasetRow:
    """Return the row of a classifier that another program made, of single texts or pairs; one class is a score."""
    names = tuple(labels) or tuple(f"LABEL_{number}" for number in range(count))
    return DatasetRow(
        name="classifier" if count > 1 else "regression",
        columns=("text_a", "label"),
        metric="accuracy" if count > 1 else "pearson",
        files={},
        kind="classification" if count > 1 else "regression",
        labels=names if count > 1 else (),
        optional=("text_b",),
    )


def confidences(row: DatasetRow, answers: Sequence[np.ndarray]) -> tuple[list[int], list[float]]:
    """Return the number of the most probable label of each example, from 0 in the row's order, and its probability."""
    probabilities = np.stack(answers)
    return probabilities.argmax(axis=1).tolist(), probabilities.max(axis=1).tolist()


def degenerate(row: DatasetRow, answers: Sequence[np.ndarray], examples: Sequence[Example]) -> str:
    """Return that all answers are one label, or score no more by the row's metric than one label everywhere could."""
    given, labels = np.stack(answers).argmax(axis=1), _labels(row, examples)
    present = np.unique(labels).tolist()
    if len(present) < 2:
        return ""  # nothing else could be answered
    if len(set(given.tolist())) == 1:
        return f"every answer is {row.labels[given[0]]!r}"

    def score(predictions: np.ndarray) -> float:
        return classification_scores(labels, predictions, len(row.labels)).get(row.metric, 0.0)

    floor, common = max((score(np.full_like(labels, each)), row.labels[each]) for each in present)
    if (reached := score(given)) <= floor:
        name = row.metric.replace("_", " ")
        return f"{name} {shown(reached)} is not above {shown(floor)}, which {common!r} everywhere would have"
    return ""


def inspected(row: DatasetRow, answers: Sequence[np.ndarray], examples: Sequence[Example]) -> Inspection:
    """Return confusions, the rates of each class, the calibration, and the examples of the highest loss."""
    probabilities, labels = np.stack(answers), _labels(row, examples)
    given, losses = probabilities.argmax(axis=1), _losses(probabilities, labels)
    right = given == labels

    def look(number: int):
        facts = {
            "index": f"{number:,}",
            "true": row.labels[labels[number]],
            "predicted": row.labels[given[number]],
            "confidence": shown(probabilities[number].max()),
            "loss": shown(losses[number]),
        }
        return facts, texts_of(examples[number])

    tables = [*class_tables(labels, given, row.labels), calibration_table(probabilities.max(axis=1), right)]
    return Inspection(tables, MostWrong(losses, right).seen(look), "by the loss of the true label")


def submitted(
    row: DatasetRow, answers: Sequence[np.ndarray], examples: Sequence[Example]
) -> list[tuple[str | None, str]]:
    """Return the id that each example has in its file and the most probable label, as it is released."""
    return [
        (example.id, row.labels[int(probabilities.argmax())])
        for probabilities, example in zip(answers, examples, strict=True)
    ]
