"""Whole texts or pairs of them, as SavedModels on strings read them: one row of features, or two rows, an example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow

from data.tokenizers.in_graph import InGraphFeatures
from serving.exporting import whole
from tasks.inputs import MASK

if TYPE_CHECKING:
    from serving.loading import Loaded

# TensorFlow's members are made at run time.
tf: Any = tensorflow
Found = Mapping[str, np.ndarray]


class Texts(tf.Module):
    """Strings [B] -> what the task predicts of them.

    Args:
        loaded: whose kind says which texts make its rows of features (`text_rows`).
    """

    def __init__(self, loaded: Loaded):
        super().__init__()
        self.model, self.task, self.labels = loaded.model, loaded.task, np.array(list(loaded.labels))
        self.row = loaded.row
        self.rows = self.text_rows(loaded)
        self.inputs = {name: [None] for row in self.rows for name in row}
        self.features = self.make_features(loaded)

    def text_rows(self, loaded: Loaded) -> list[list[str]]:
        """Return the rows of features of an example by their texts: one row of a text or a pair."""
        is_pair = loaded.row is not None and loaded.row.is_pair and "text_b" not in loaded.row.optional
        return [["text_a", "text_b"] if is_pair else ["text_a"]]

    def make_features(self, loaded: Loaded) -> Any:
        """Return what makes the features of a row of its strings."""
        return InGraphFeatures(loaded.tokenizer, loaded.max_seq_length)

    def __call__(self, *strings: Any) -> dict[str, Any]:
        """Return the answers to strings, which are in the order of `inputs`."""
        given = dict(zip(self.inputs, strings, strict=True))
        parts = [self.features(*(given[name] for name in row)) for row in self.rows]
        features = {name: tf.stack([part[name] for part in parts], axis=1) for name in parts[0]}
        longest = tf.reduce_max(tf.reduce_sum(features[MASK], axis=-1))
        features = {name: value[..., :longest] for name, value in features.items()}
        if len(self.rows) == 1:
            features = {name: value[:, 0] for name, value in features.items()}
        return self.named(dict(self.task.predictions(whole(self.model), features)))

    def named(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return the predictions with the names that belong to them."""
        return found

    def given(self, examples: Sequence[Any]) -> dict[str, np.ndarray]:
        """Return the texts of examples."""
        return {
            name: np.array([each if isinstance(each, str) else getattr(each, name) for each in examples])
            for name in self.inputs
        }

    def beside(self, count: Any) -> Any:
        """Return the names of the classes for so many rows, [B, C]."""
        return tf.tile(self.labels[None], [count, 1])


class Classes(Texts):
    """`probabilities` [B, C], the most probable `label`, and all `labels` in their order."""

    def named(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return the names of the best and of all classes."""
        chances = found["probabilities"]
        best = tf.gather(self.labels, tf.argmax(chances, axis=-1))
        return {"probabilities": chances, "label": best, "labels": self.beside(tf.shape(chances)[0])}

    def answers(self, found: Found, examples: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the label, its probability and those of all labels."""
        return [
            {
                "prediction": str(found["label"][n]),
                "confidence": float(found["probabilities"][n].max()),
                "probabilities": _by_label(found, n),
            }
            for n in range(len(examples))
        ]


class LabelSets(Texts):
    """`probabilities` [B, C], all `labels` in their order, and `chosen` [B, C]: those from the threshold on."""

    def named(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return what is chosen, and the names."""
        assert self.row is not None
        chances = found["probabilities"]
        return {
            "probabilities": chances,
            "labels": self.beside(tf.shape(chances)[0]),
            "chosen": chances >= self.row.threshold,
        }

    def answers(self, found: Found, examples: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the labels that are chosen, and the probability of every one."""
        return [
            {
                "prediction": [str(each) for each in found["labels"][n][found["chosen"][n].astype(bool)]],
                "probabilities": _by_label(found, n),
            }
            for n in range(len(examples))
        ]


class Scores(Texts):
    """`score` [B]."""

    def answers(self, found: Found, examples: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the scores."""
        return [{"score": float(found["score"][n])} for n in range(len(examples))]


class Vectors(Texts):
    """`embedding_a` and `embedding_b` [B, D], their `cosine` [B] and, where labels say what it means, `label` [B].

    An empty second text has a vector too, that of no text: of a text alone the first is the answer.
    """

    def text_rows(self, loaded: Loaded) -> list[list[str]]:
        """Return a row for each text."""
        return [["text_a"], ["text_b"]]

    def named(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return the cosine and its label."""
        assert self.row is not None
        cosine = tf.reduce_sum(found["embedding_a"] * found["embedding_b"], axis=-1)
        found = found | {"cosine": cosine}
        if len(self.labels):
            found["label"] = tf.gather(self.labels, tf.cast(cosine >= self.row.threshold, tf.int32))
        return found

    def answers(self, found: Found, examples: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the cosines with their labels; of a text alone its vector."""
        answers: list[dict[str, Any]] = []
        for n, example in enumerate(examples):
            if not example.text_b:
                answers.append({"embedding": [float(each) for each in found["embedding_a"][n]]})
                continue
            told: dict[str, Any] = {"cosine": float(found["cosine"][n])}
            answers.append(told | ({"prediction": str(found["label"][n])} if "label" in found else {}))
        return answers


def _by_label(found: Found, number: int) -> dict[str, float]:
    pairs = zip(found["labels"][number], found["probabilities"][number], strict=True)
    return {str(label): float(chance) for label, chance in pairs}
