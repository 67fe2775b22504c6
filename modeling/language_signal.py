"""A vector for each language, by which a token that is yet to be found says what language it is to be of (ERNIE-M).

Whether Ouyang et al. 2021 had one cannot be verified. Their published weights have none, and only its position tells a
placeholder's language there. The vectors begin at zero, so that a model which gets them computes what it did before.
Each is a variable of the name of its language, so that a checkpoint of other languages gives those that both have.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from ground.tensors import Tensor, ops
from modeling.body import Body
from modeling.computation import LANGUAGES, Computation, Sizes
from modeling.config import Config
from modeling.variables import Initialization


class LanguageVectors(keras.layers.Layer):
    """Numbers of languages, int32 [B] -> their vectors x_B1E."""

    def __init__(self, width: int, languages: Sequence[str], *, dtype: Any) -> None:
        super().__init__(dtype=dtype, name=LANGUAGES)
        self.width, self.languages = width, tuple(languages)

    def build(self, input_shape: Any = None) -> None:
        """Create a vector [E] of zeros for each language."""
        self.vectors = [
            self.add_weight(shape=(self.width,), initializer="zeros", name=language) for language in self.languages
        ]

    def call(self, numbers_B: Tensor) -> Tensor:
        """Return the vectors of the languages of these numbers."""
        table_CE = ops.concatenate([vector[None] for vector in self.vectors], axis=0)
        # A product with one-hot rows: the gradient of so small a table is then dense and reproducible.
        one_hot_BC = ops.one_hot(numbers_B, len(self.languages), dtype=self.compute_dtype)
        return ops.matmul(one_hot_BC, table_CE)[:, None]


class LanguageSignal:
    """A head without scores: it holds the vectors that losses give to queries and masked tokens.

    Args:
        config: graph and shapes.
        initialization: of the variables; these begin at zero.
        computation: precision.
        body: that reads the vectors, as `query_vectors` or `word_vectors`.
        languages: their codes, in the order of their numbers.
    """

    reads_first_only = True

    def __init__(
        self,
        config: Config,
        initialization: Initialization,
        computation: Computation,
        body: Body,
        *,
        languages: Sequence[str],
    ) -> None:
        self.vectors = LanguageVectors(config.embedding_size, languages, dtype=computation.dtype)
        self.layers = (self.vectors,)

    def __call__(
        self, outputs: Mapping[str, Any], features: Mapping[str, Tensor], body: Body, training: bool
    ) -> dict[str, Tensor]:
        """Return nothing; see `modeling.heads.Head`."""
        return {}

    def operations(self, sizes: Sizes, body: Body) -> int:
        """Return 0: a vector is looked up once for all tokens of an example."""
        return 0
