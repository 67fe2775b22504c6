"""Classification of a text or a pair of texts, the host half: labels to ids, probabilities to scores and lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from data.labelled import ClassificationDataset, encode_examples
from tasks.datasets import HEADER_NAMES, DatasetRow, Example, read_examples
from tasks.found_labels import labels_in
from tasks.kinds import PRETRAINING_HEADS, HeadOptions, Prediction, Scores
from tasks.metrics import CLASSIFICATION_METRICS, classification_scores

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer
    from modeling.computation import Computation
    from modeling.config import Config
    from tasks.classification import ClassificationTask

verb = "run_classifier"
needs = ("labels",)
columns = tuple(HEADER_NAMES)
header_names = HEADER_NAMES
metrics = CLASSIFICATION_METRICS
new_heads = ("classifier/.*", "pooled_layer_norm/.*")
unused_heads = PRETRAINING_HEADS
read = read_examples
find_labels = labels_in


def dataset(
    row: DatasetRow,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    max_seq_length: int,
    batch_size: int,
    seed: int = 0,
) -> ClassificationDataset:
    """Tokenise the examples; a label becomes its index in the row, -1 where there is none."""
    encoded = encode_examples(
        [example.text_a for example in examples],
        [example.text_b or "" for example in examples] if row.is_pair else None,
        [row.labels.index(example.label) if example.label is not None else -1 for example in examples],
        tokenizer,
        max_seq_length,
    )
    return ClassificationDataset(encoded, batch_size, max_seq_length, seed=seed)


def task(row: DatasetRow, config: Config, computation: Computation, head: HeadOptions) -> ClassificationTask:
    """Return a softmax over the labels of the row."""
    from tasks.classification import ClassificationTask

    return ClassificationTask(
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
    probabilities = np.stack(answers)
    labels = np.array([row.labels.index(example.label or "") for example in examples])
    loss = -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-30)).mean()
    return {**classification_scores(labels, probabilities.argmax(axis=1), len(row.labels)), "loss": float(loss)}


def lines(row: DatasetRow, answers: Sequence[np.ndarray], examples: Sequence[Example]) -> Iterator[str]:
    """Yield, per example, the predicted label, its probability, the true label and the texts, TAB separated."""
    yield "index\tprediction\tconfidence\tlabel\ttext_a\ttext_b"
    for index, (probabilities, example) in enumerate(zip(answers, examples, strict=True)):
        best = int(probabilities.argmax())
        texts = (example.label or "", example.text_a, example.text_b or "")
        yield "\t".join([str(index), row.labels[best], f"{probabilities[best]:.4f}", *texts])


def submitted(
    row: DatasetRow, answers: Sequence[np.ndarray], examples: Sequence[Example]
) -> list[tuple[str | None, str]]:
    """Return the id that each example has in its file and the most probable label, as it is released."""
    return [
        (example.id, row.labels[int(probabilities.argmax())])
        for probabilities, example in zip(answers, examples, strict=True)
    ]
