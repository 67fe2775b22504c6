"""Questions with choices, as SavedModels on strings read them: a row of features a choice.

Inputs are context [B], question [B] and choices [B, C], where "" stands for a choice that an example has not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tensorflow

from data.tokenizers.in_graph import InGraphFeatures
from serving.exporting import whole
from serving.strings.told import ToldChoices
from tasks.inputs import MASK

if TYPE_CHECKING:
    from serving.loading import Loaded

tf: Any = tensorflow


class Choices(tf.Module, ToldChoices):
    """`probabilities` [B, C], the number of the best choice, `prediction` [B], and its text, `choice` [B]."""

    def __init__(self, loaded: Loaded):
        super().__init__()
        self.model, self.task = loaded.model, loaded.task
        self.inputs = {"context": [None], "question": [None], "choices": [None, None]}
        self.features = InGraphFeatures(loaded.tokenizer, loaded.max_seq_length)

    def __call__(self, context: Any, question: Any, choices: Any) -> dict[str, Any]:
        rows, width = tf.shape(choices)[0], tf.shape(choices)[1]
        # The same text twice is one choice, the first.
        before = tf.linalg.band_part(tf.ones((width, width), tf.int32), -1, 0) - tf.eye(width, dtype=tf.int32)
        same = tf.cast(choices[:, :, None] == choices[:, None, :], tf.int32) * before[None]
        real = (choices != "") & (tf.reduce_sum(same, axis=-1) == 0)
        questions, flat = tf.repeat(question, width), tf.reshape(choices, [-1])
        features = self.features(tf.repeat(context, width), _asked(questions, flat))
        longest = tf.reduce_max(tf.reduce_sum(features[MASK], axis=-1) * tf.cast(tf.reshape(real, [-1]), tf.int32))
        features = {
            name: tf.reshape(value, [rows, width, -1])[..., :longest] * tf.cast(real, tf.int32)[..., None]
            for name, value in features.items()
        }
        chances = self.task.predictions(whole(self.model), features)["probabilities"]
        chances = tf.where(real, chances, 0.0)
        best = tf.argmax(chances, axis=-1, output_type=tf.int32)
        return {
            "probabilities": chances,
            "prediction": best,
            "choice": tf.gather(choices, best, batch_dims=1),
        }


def _asked(questions: Any, choices: Any) -> Any:
    """Return the second text of each row: the question with the choice in its blank, else behind it.

    Example:
        "他_地走", "慢慢" -> "他慢慢地走"      "谁？", "他" -> "谁？ 他"
    """
    parts = tf.strings.split(tf.strings.regex_replace(questions, "_+", "_"), "_")
    row = parts.value_rowids()
    is_first = tf.concat([[True], row[1:] != row[:-1]], axis=0)[: tf.size(row)]
    filled = tf.where(is_first, "", tf.gather(choices, row)) + parts.flat_values
    joined = tf.strings.reduce_join(parts.with_flat_values(filled), axis=-1)
    return tf.where(parts.row_lengths() > 1, joined, tf.strings.join([questions, choices], " "))
