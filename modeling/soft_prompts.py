"""Soft prompts: slots of a text whose vectors are learnt, as further rows behind the word table: directly (Lester et
al. 2021), or through P-Tuning's prompt encoder, a bidirectional LSTM and two dense layers (Liu et al. 2021, section 3).

Slot i of a text has the id vocab_size + i. The encoder is of use in training alone: a model without one computes the
vectors from its weights as it loads them, and has P rows where training had an encoder.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any

import keras
import numpy as np

from ground.tensors import Tensor, ops
from modeling.beginnings import Computed
from modeling.body import Body
from modeling.computation import Computation, Sizes
from modeling.config import Config
from modeling.layers import Dense
from modeling.variables import Initialization

ENCODERS = ("lstm", "none")
NAME = "soft_prompt"
_LAYERS = 2
_DIRECTIONS = ("forward", "backward")
_WORDS = "backbone/embeddings/word_embeddings"


def lstm(x_PI: Tensor, kernel_I4H: Tensor, recurrent_H4H: Tensor, bias_4H: Tensor, *, backward: bool) -> Tensor:
    """Return the states of an LSTM over the P rows of a sequence, h_PH (Hochreiter and Schmidhuber 1997).

    Its four gates stand in the order input, forget, cell, output, as in PyTorch, whose two biases are one here. The
    sequence is as long as a prompt, so that its steps are written out.

    Args:
        x_PI: the sequence, P known.
        kernel_I4H: from the input.
        recurrent_H4H: from the state before.
        bias_4H: of both.
        backward: read from the last row to the first.
    """
    count, size = x_PI.shape[0], recurrent_H4H.shape[0]
    gates_P4H = ops.matmul(x_PI, kernel_I4H) + bias_4H
    h_1H = c_1H = ops.zeros((1, size), gates_P4H.dtype)
    states: dict[int, Tensor] = {}
    for place in reversed(range(count)) if backward else range(count):
        gates_14H = gates_P4H[place : place + 1] + ops.matmul(h_1H, recurrent_H4H)
        entering, kept, cell, leaving = (gates_14H[:, n * size : (n + 1) * size] for n in range(4))
        c_1H = ops.sigmoid(kept) * c_1H + ops.sigmoid(entering) * ops.tanh(cell)
        states[place] = h_1H = ops.sigmoid(leaving) * ops.tanh(c_1H)
    return ops.concatenate([states[place] for place in range(count)], axis=0)


def encoded(vectors_PE: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Return the vectors that P-Tuning's encoder makes of its own: two layers of LSTM, dense, ReLU, dense; x_PE.

    Args:
        vectors_PE: what the slots are to the encoder.
        weights: as `lstm_0_forward/kernel`, `mlp_0/bias`, by the end of the variable's name.
    """
    x = vectors_PE
    for layer in range(_LAYERS):
        read = []
        for direction in _DIRECTIONS:
            parts = [weights[f"lstm_{layer}_{direction}/{part}"] for part in _LSTM_PARTS]
            read.append(lstm(x, *parts, backward=direction == "backward"))
        x = ops.concatenate(read, axis=-1)
    x = ops.relu(ops.matmul(x, weights["mlp_0/kernel"]) + weights["mlp_0/bias"])
    return ops.matmul(x, weights["mlp_1/kernel"]) + weights["mlp_1/bias"]


_LSTM_PARTS = ("kernel", "recurrent_kernel", "bias")
_PARTS = tuple(
    [f"lstm_{n}_{direction}/{part}" for n in range(_LAYERS) for direction in _DIRECTIONS for part in _LSTM_PARTS]
    + [f"mlp_{n}/{part}" for n in (0, 1) for part in ("kernel", "bias")]
)


class OneDirection(keras.layers.Layer):
    """The weights of one direction of a layer of the encoder."""

    def __init__(self, inputs: int, size: int, initialization: Initialization, *, dtype: Any, name: str) -> None:
        super().__init__(dtype=dtype, name=name)
        self.inputs, self.size, self.initialization = inputs, size, initialization

    def build(self, input_shape: Any = None) -> None:
        """Create kernel [I, 4H], recurrent_kernel [H, 4H] and bias [4H]."""
        for name, rows in (("kernel", self.inputs), ("recurrent_kernel", self.size)):
            initializer = self.initialization.truncated_normal(self, name)
            setattr(self, name, self.add_weight(shape=(rows, 4 * self.size), initializer=initializer, name=name))
        self.bias = self.add_weight(shape=(4 * self.size,), initializer="zeros", name="bias")


class SoftVectors(keras.layers.Layer):
    """The vectors of P slots [P, E], and with an encoder the weights that make them.

    Args:
        config: the model's.
        initialization: of the vectors.
        count: P.
        encoder: a row of ENCODERS.
        dtype: policy.
    """

    def __init__(self, config: Config, initialization: Initialization, count: int, encoder: str, *, dtype: Any) -> None:
        super().__init__(dtype=dtype, name=NAME)
        self.config, self.initialization, self.count = config, initialization, count
        self.parts: list[keras.layers.Layer] = []
        if encoder == "lstm":
            width = config.embedding_size
            size = max(1, width // 2)
            # A deviation as PyTorch's layers begin with; the model's own would leave next to nothing of the prompt.
            wide = Initialization((3 * size) ** -0.5, initialization.seed)
            for layer in range(_LAYERS):
                for direction in _DIRECTIONS:
                    inputs = width if layer == 0 else 2 * size
                    name = f"lstm_{layer}_{direction}"
                    self.parts.append(OneDirection(inputs, size, wide, dtype=dtype, name=name))
            self.parts.append(Dense(2 * size, width, wide, dtype=dtype, name="mlp_0"))
            self.parts.append(Dense(width, width, wide, dtype=dtype, name="mlp_1"))

    def build(self, input_shape: Any = None) -> None:
        """Create `vectors` and the encoder's weights."""
        shape = (self.count, self.config.embedding_size)
        initializer = self.initialization.truncated_normal(self, "vectors")
        self.vectors = self.add_weight(shape=shape, initializer=initializer, name="vectors")
        for part in self.parts:
            part.build(None)

    def values(self) -> Tensor:
        """Return what stands in the slots, x_PE."""
        vectors_PE = ops.convert_to_tensor(self.vectors)
        if not self.parts:
            return vectors_PE
        named = {f"{part.name}/{variable.name}": variable for part in self.parts for variable in part.weights}
        return encoded(vectors_PE, {name: ops.convert_to_tensor(value) for name, value in named.items()})

    def lookup(self, ids_BL: Tensor, words_VE: Tensor) -> Tensor:
        """Return the vectors of words and slots, x_BLE.

        Example:
            vocab_size 9, ids [3 10 9] -> row 3 of the word table, slot 1, slot 0
        """
        first = self.config.vocab_size
        is_slot_BL = ids_BL >= first
        words_BLE = ops.take(words_VE, ops.where(is_slot_BL, 0, ids_BL), axis=0)
        slots_BLE = ops.take(self.values(), ops.where(is_slot_BL, ids_BL - first, 0), axis=0)
        return ops.where(is_slot_BL[:, :, None], ops.cast(slots_BLE, words_BLE.dtype), words_BLE)


class SoftPrompt:
    """A head without scores: it gives the embeddings of the body further rows.

    Args:
        config: graph and shapes.
        initialization: of the variables.
        computation: precision.
        body: whose embeddings look up.
        initial_ids: of each slot the word that it begins as, or -1.
        encoder: a row of ENCODERS.
    """

    reads_first_only = True

    def __init__(
        self,
        config: Config,
        initialization: Initialization,
        computation: Computation,
        body: Body,
        *,
        initial_ids: Sequence[int],
        encoder: str = "none",
    ) -> None:
        self.initial_ids, self.width = tuple(initial_ids), config.embedding_size
        self.vectors = SoftVectors(config, initialization, len(self.initial_ids), encoder, dtype=computation.dtype)
        self.layers = (self.vectors,)
        body.embeddings.lookup = self.vectors.lookup

    def __call__(
        self, outputs: Mapping[str, Any], features: Mapping[str, Tensor], body: Body, training: bool
    ) -> dict[str, Tensor]:
        """Return nothing; see `modeling.heads.Head`."""
        return {}

    def operations(self, sizes: Sizes, body: Body) -> int:
        """Return 0: a prompt is encoded once for all examples of a batch."""
        return 0

    def computed(self, names: Set[str]) -> list[Computed]:
        """Return how the vectors follow from a checkpoint of other variables: of an encoder, or of words alone."""
        shape, vectors = (len(self.initial_ids), self.width), f"{NAME}/vectors"
        sources = tuple(f"{NAME}/{part}" for part in _PARTS)
        if not self.vectors.parts and names >= {*sources}:

            def fold(vectors_PE: np.ndarray, *weights: np.ndarray) -> np.ndarray:
                return np.asarray(ops.convert_to_numpy(encoded(vectors_PE, dict(zip(_PARTS, weights, strict=True)))))

            return [Computed(vectors, shape, (vectors, *sources), fold, unused=frozenset(sources))]
        if vectors in names or _WORDS not in names or max(self.initial_ids, default=-1) < 0:
            return []

        def begin(words_VE: np.ndarray) -> np.ndarray:
            found = np.asarray(self.vectors.vectors).astype(words_VE.dtype)
            for slot, word in enumerate(self.initial_ids):
                if word >= 0:
                    found[slot] = words_VE[word]
            return found

        return [Computed(vectors, shape, (_WORDS,), begin)]
