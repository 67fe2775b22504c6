"""Token, position and segment embeddings, and the same word table as output layer (BERT; ALBERT's factorised table).

Google's ALBERT normalises in the embedding width and projects afterwards, with a bias; albert_zh projects the word
vector first, without a bias, and adds positions and segments in the model's width.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from ground.tensors import Tensor, ops
from modeling.computation import Sizes
from modeling.config import Config
from modeling.layers import Dense, LayerNorm
from modeling.randomness import dropout
from modeling.variables import Initialization


def places_in_sequence(sequence_ids_BL: Tensor) -> Tensor:
    """Return the place of each token of a packed row in its own sequence, from 0 on; int32 [B, L].

    A row of two sequences and one position of padding:
        sequence_ids [1, 1, 1, 2, 2, 0] -> places [0, 1, 2, 0, 1, 0]
    """
    same_BLL = ops.cast(sequence_ids_BL[:, :, None] == sequence_ids_BL[:, None, :], "int32")
    return ops.sum(ops.tril(same_BLL, k=-1), axis=-1)


def without_padding(config: Config, scores: Tensor) -> Tensor:
    """Score the rows that only pad the word table so low that their probability is exactly 0."""
    vocab_size, rows = config.vocab_size, config.padded_vocab_size
    if rows == vocab_size:
        return scores
    return ops.where(ops.arange(rows) < vocab_size, scores, float(np.finfo(np.float32).min) / 2)


class Embeddings(keras.layers.Layer):
    """input_ids -> x_BLD, and hidden states -> scores over the vocabulary through the same table.

    Attributes:
        projects_first: the projection, then without a bias, precedes the sum with positions and segments.
        sum_width: width of that sum, and of the hidden states that `logits` scores.
        words: other embeddings, whose word table is this one's too.
        lookup: (ids [B, L], word table [V, E]) -> vectors [B, L, E], where a model has further rows (soft prompts).
    """

    lookup: Callable[[Tensor, Tensor], Tensor] | None = None

    def __init__(
        self,
        config: Config,
        initialization: Initialization,
        *,
        projects_first: bool = False,
        words: "Embeddings | None" = None,
        dtype: Any,
        name: str = "embeddings",
    ) -> None:
        super().__init__(dtype=dtype, name=name)
        self.config = config
        self.words = words
        self.initialization = initialization
        self.projects_first = projects_first
        self.sum_width = config.hidden_size if projects_first else config.embedding_size
        self.layer_norm = LayerNorm(self.sum_width, config.layer_norm_eps, dtype=dtype)
        self.projection = None
        if config.projects:
            self.projection = Dense(
                config.embedding_size,
                config.hidden_size,
                initialization,
                use_bias=not projects_first,
                dtype=dtype,
                name="projection",
            )

    def build(self, input_shape: Any = None) -> None:
        """Create the tables, the LayerNorm and the projection."""
        config = self.config
        if self.words is None:
            self.word_embeddings = self._table("word_embeddings", config.padded_vocab_size, config.embedding_size)
        else:
            self.word_embeddings = self.words.word_embeddings
        self.position_embeddings = self._table("position_embeddings", config.max_position_embeddings, self.sum_width)
        self.token_type_embeddings = None
        if config.type_vocab_size:
            self.token_type_embeddings = self._table("token_type_embeddings", config.type_vocab_size, self.sum_width)
        self.layer_norm.build(None)
        if self.projection is not None:
            self.projection.build(None)

    def _table(self, name: str, rows: int, width: int) -> keras.Variable:
        initializer = self.initialization.truncated_normal(self, name)
        return self.add_weight(shape=(rows, width), initializer=initializer, name=name)

    def call(
        self,
        input_ids_BL: Tensor,
        segment_ids_BL: Tensor | None = None,
        position: int | Tensor = 0,
        word_noise_BLE: Tensor | None = None,
        training: bool = False,
        sequence_ids_BL: Tensor | None = None,
        places_BL: Tensor | None = None,
    ) -> Tensor:
        """Embed tokens.

        Args:
            input_ids_BL: token ids.
            segment_ids_BL: token types; all 0 by default.
            position: position of the first token (cached decoding).
            word_noise_BLE: added to the looked-up word vectors (adversarial training; the language of a token).
            training: apply dropout.
            sequence_ids_BL: the number of each token's sequence in packed rows; positions begin anew in each.
            places_BL: the place of each token in its sequence, from 0 on, for rows that are no sequences; the caller
                sees to it that there is a position for each.

        Raises:
            absl.app.UsageError: the row, which one sequence may fill, is longer than the position table.
        """
        length = input_ids_BL.shape[1]
        if isinstance(length, int) and places_BL is None:
            self.config.check_sequence_length(length)
        if self.lookup is None:
            x = ops.take(self.word_embeddings, input_ids_BL, axis=0)
        else:
            x = self.lookup(input_ids_BL, self.word_embeddings)
        if word_noise_BLE is not None:
            x = x + ops.cast(word_noise_BLE, x.dtype)
        if self.config.embedding_scale != 1.0:
            x = x * self.config.embedding_scale
        if self.projection is not None and self.projects_first:
            x = self.projection(x)
        first = self.config.position_offset + position
        if places_BL is not None:
            positions_LX = ops.take(self.position_embeddings, first + places_BL, axis=0)
        elif sequence_ids_BL is None:
            size = (ops.shape(input_ids_BL)[1], self.sum_width)
            positions_LX = ops.slice(ops.convert_to_tensor(self.position_embeddings), (first, 0), size)
        else:
            positions_LX = ops.take(self.position_embeddings, first + places_in_sequence(sequence_ids_BL), axis=0)
        if self.token_type_embeddings is not None:
            # RoBERTa has one type, whatever segments there are.
            if segment_ids_BL is None or self.config.type_vocab_size == 1:
                positions_LX = positions_LX + self.token_type_embeddings[0]
            else:
                # A product with one-hot rows: the gradient of so small a table is then dense and reproducible.
                one_hot_BLT = ops.one_hot(segment_ids_BL, self.config.type_vocab_size, dtype=self.compute_dtype)
                x = x + ops.matmul(one_hot_BLT, self.token_type_embeddings)
        x = self.layer_norm(x + positions_LX)
        x = dropout(x, self.config.hidden_dropout_prob, training)
        if self.projection is not None and not self.projects_first:
            x = self.projection(x)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Score every word: [.., D] (albert_zh: both factors, transposed) or [.., E] -> float32 [.., V].

        Rows that only pad the table score so low that their probability is exactly 0.
        """
        if self.projection is not None and self.projects_first:
            x = ops.matmul(x, ops.transpose(self.projection.kernel))
        return without_padding(self.config, ops.cast(ops.matmul(x, ops.transpose(self.word_embeddings)), "float32"))

    @property
    def max_positions(self) -> int:
        """The most positions of a sequence."""
        return self.config.max_sequence_length

    def operations(self, sizes: Sizes) -> int:
        """Return those of the projection, forward and for one example; a lookup is no product."""
        return 0 if self.projection is None else self.projection.operations(sizes.tokens)

    def logits_operations(self, positions: int) -> int:
        """Return those of `logits` at so many positions."""
        back = self.projection.operations(positions) if self.projection is not None and self.projects_first else 0
        return back + 2 * positions * self.config.embedding_size * self.config.padded_vocab_size
