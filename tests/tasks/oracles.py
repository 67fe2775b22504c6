"""A model that is told the truth: predictions made from the labels of a data set, to test the way there and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from data.windows import WindowedDataset


def tag_oracle(dataset: WindowedDataset, num_tags: int) -> list[dict[str, Any]]:
    """Return of every row the log-probabilities by which its own labels are near certain."""
    found = []
    for row in range(dataset.num_examples):
        labels = dataset.token_labels[dataset.examples.splits[row] : dataset.examples.splits[row + 1]]  # pyright: ignore[reportOptionalSubscript]
        values = np.full((len(labels), num_tags), -9.0, np.float32)
        values[np.arange(len(labels)), np.maximum(labels, 0)] = -0.01
        found.append({"log_probabilities": values, **dataset.facts(row)})
    return found


def span_oracle(dataset: WindowedDataset, height: float = 9.0) -> list[dict[str, Any]]:
    """Return of every row the logits by which its own labels are best."""
    found = []
    for row, length in enumerate(dataset.examples.lengths_tokens.tolist()):
        logits = np.zeros((2, length), np.float32)
        for end, place in enumerate(dataset.examples.labels[row].tolist()):
            logits[end, max(place, 0)] = height
        found.append({"start_logits": logits[0], "end_logits": logits[1], **dataset.facts(row)})
    return found


class Oracle:
    """An engine that predicts the labels of the batches that it is given; fulfils `tasks.splits.Predictor`."""

    def __init__(self, num_tags: int = 0):
        self.num_tags = num_tags

    def predict(self, batches: Iterator[Mapping[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
        """Yield log-probabilities of tags, or logits of the ends of answers."""
        for batch in batches:
            labels = batch["label_ids"]
            if self.num_tags:
                yield {"log_probabilities": np.log(np.eye(self.num_tags, dtype=np.float32)[labels] + 1e-4)}
            else:
                ends = np.eye(batch["input_ids"].shape[1], dtype=np.float32)[labels] * 9
                yield {"start_logits": ends[:, 0], "end_logits": ends[:, 1]}
