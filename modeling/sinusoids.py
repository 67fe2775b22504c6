"""Embeddings of a decoder with sinusoids for positions (Vaswani et al. 2017, section 3.5), as PreSumm scales them."""

from typing import Any

import keras
import numpy as np
from absl.app import UsageError

from ground.tensors import Tensor, ops
from modeling.config import Config
from modeling.embeddings import without_padding
from modeling.palm_en import POSITIONS
from modeling.randomness import dropout
from modeling.variables import Initialization


def sinusoids(positions: int, width: int) -> np.ndarray:
    """Return float32 [positions, width]: sines in even columns, cosines in odd ones, periods from 2 pi to 20000 pi."""
    angles = np.arange(positions)[:, None] / 10000.0 ** (np.arange(0, width, 2) / width)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(positions, width).astype(np.float32)


class ScaledEmbeddings(keras.layers.Layer):
    """Target ids -> word vectors times the square root of the width, plus sinusoids; states -> scores with a bias."""

    def __init__(
        self, config: Config, initialization: Initialization, *, dtype: Any, name: str = "target_embeddings"
    ) -> None:
        super().__init__(dtype=dtype, name=name)
        self.config = config
        self.initialization = initialization
        self.table = sinusoids(POSITIONS, config.hidden_size)

    def build(self, input_shape: Any = None) -> None:
        """Create the word table [V, D] and the bias of the scores [V]."""
        rows, width = self.config.padded_vocab_size, self.config.hidden_size
        initializer = self.initialization.truncated_normal(self, "word_embeddings")
        self.word_embeddings = self.add_weight(shape=(rows, width), initializer=initializer, name="word_embeddings")
        self.output_bias = self.add_weight(shape=(rows,), initializer="zeros", name="output_bias", autocast=False)

    def call(self, input_ids_BL: Tensor, position: int | Tensor = 0, training: bool = False) -> Tensor:
        """Embed tokens, the first of which is at `position`.

        Raises:
            absl.app.UsageError: more tokens than the released code has positions.
        """
        width = self.config.hidden_size
        length = input_ids_BL.shape[1]
        if isinstance(length, int) and length > POSITIONS:
            raise UsageError(f"targets of {length} tokens, but this decoder has {POSITIONS} positions: shorten them")
        x_BLD = ops.take(self.word_embeddings, input_ids_BL, axis=0) * width**0.5
        size = (ops.shape(input_ids_BL)[1], width)
        places_LD = ops.slice(ops.convert_to_tensor(self.table, dtype=self.compute_dtype), (position, 0), size)
        return dropout(x_BLD + places_LD, self.config.hidden_dropout_prob, training)

    def logits(self, x: Tensor) -> Tensor:
        """Score every word: [.., D] -> float32 [.., V]."""
        scores = ops.cast(ops.matmul(x, ops.transpose(self.word_embeddings)), "float32") + self.output_bias
        return without_padding(self.config, scores)

    @property
    def max_positions(self) -> int:
        """The most positions of a target."""
        return POSITIONS

    def logits_operations(self, positions: int) -> int:
        """Return those of `logits` at so many positions."""
        return 2 * positions * self.config.hidden_size * self.config.padded_vocab_size
