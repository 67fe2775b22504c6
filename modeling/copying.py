"""Copying words of the source into the target (See et al. 2017; PALM, Bi et al. 2020, section 3.3), in log space.

A gate mixes the distribution over the vocabulary with one over the words of the source. Differs from the released
English code in that probabilities are normalised once; `legacy_attention` keeps its second softmax for its checkpoints.
"""

from collections.abc import Mapping
from typing import Any

import keras

from ground.tensors import Tensor, ops
from modeling import masks
from modeling.config import Config
from modeling.layers import Dense
from modeling.variables import Initialization

_LEAST = 1e-30
"""Added to probabilities of copying before their logarithm: a word that the source lacks has none."""
_QUERIES = 16
"""Targets whose additive scores are held at once: all of them would be [B, T, S, D] numbers."""


class Copying(keras.layers.Layer):
    """Scores over the vocabulary and states -> log-probabilities of words that may also be copied.

    `config.copy` says where the copied words come from: "additive" is the paper's attention of its own, "attention"
    the mean over the heads of the last block's cross-attention.

    Args:
        config: graph and shapes.
        initialization: of the variables.
        dtype: Keras dtype policy.
        name: of the layer.
    """

    def __init__(self, config: Config, initialization: Initialization, *, dtype: Any, name: str = "copy") -> None:
        super().__init__(dtype=dtype, name=name)
        width = config.hidden_size
        self.kind = config.copy
        self.width = width
        self.gate = Dense(2 * width, 1, initialization, dtype=dtype, name="gate")
        self.parts: tuple[Dense, ...] = ()
        if self.kind == "additive":
            self.of_memory = Dense(width, width, initialization, use_bias=False, dtype=dtype, name="memory")
            self.of_state = Dense(width, width, initialization, dtype=dtype, name="state")
            self.score = Dense(width, 1, initialization, use_bias=False, dtype=dtype, name="score")
            self.parts = (self.of_memory, self.of_state, self.score)

    def build(self, input_shape: Any = None) -> None:
        """Build the gate and the attention."""
        for layer in (self.gate, *self.parts):
            layer.build(None)

    def call(self, logits_BTV: Tensor, source: Mapping[str, Tensor], state_BTD: Tensor) -> Tensor:
        """Return log-probabilities, float32 [B, T, V].

        Example:
            source_ids [7 9 7], attention of one target [0.5 0.3 0.2], gate 0.6, P_vocabulary(7) = 0.1
            P(7) = 0.6 * 0.1 + 0.4 * (0.5 + 0.2) = 0.34

        Args:
            logits_BTV: scores over the vocabulary.
            source: `ids` int32 [B, S], `mask` int32 [B, S], `states` [B, S, D]; `attention` float32 [B, T, S] unless
                the attention is additive, and then perhaps what `project` returned.
            state_BTD: states of the decoder, normalised.
        """
        memory_BSD = source["states"]
        attention_BTS = self._additive(source, state_BTD) if self.parts else source["attention"]
        context_BTD = ops.matmul(ops.cast(attention_BTS, self.compute_dtype), memory_BSD)
        gate_BT1 = ops.cast(self.gate(ops.concatenate([context_BTD, state_BTD], axis=-1)), "float32")
        copied_BTV = over_vocabulary(attention_BTS, source["ids"], logits_BTV.shape[-1])
        twice = self.kind == "legacy_attention"
        copied_BTV = ops.log_softmax(copied_BTV) if twice else ops.log(copied_BTV + _LEAST)
        generated_BTV = ops.log_softmax(logits_BTV)
        return ops.logaddexp(ops.log_sigmoid(gate_BT1) + generated_BTV, ops.log_sigmoid(-gate_BT1) + copied_BTV)

    def project(self, states_BSD: Tensor) -> dict[str, Tensor]:
        """Return what of additive attention depends on the source alone, so that a search computes it once."""
        return {"projected": self.of_memory(states_BSD)} if self.parts else {}

    def _additive(self, source: Mapping[str, Tensor], state_BTD: Tensor) -> Tensor:
        """Return the paper's attention, softmax over l of w_c . tanh(W_m h_l + W_s s_t + b_c), float32 [B, T, S]."""
        memory_BSD = source["projected"] if "projected" in source else self.project(source["states"])["projected"]
        state_BTD = self.of_state(state_BTD)
        kernel_D1 = ops.cast(self.score.kernel, self.compute_dtype)

        # All that has a gradient is an argument: eager TensorFlow loses what a recomputed function takes from outside.
        def scores(memory_BSD: Tensor, state_BQD: Tensor, kernel_D1: Tensor) -> Tensor:
            return ops.matmul(ops.tanh(memory_BSD[:, None] + state_BQD[:, :, None]), kernel_D1)[..., 0]

        parts = [state_BTD[:, begin : begin + _QUERIES] for begin in range(0, state_BTD.shape[1], _QUERIES)]
        scores_BTS = ops.concatenate([keras.remat(scores)(memory_BSD, part, kernel_D1) for part in parts], axis=1)
        mask_B1S = ops.cast(source["mask"], "bool")[:, None, :]
        return ops.softmax(ops.cast(scores_BTS, "float32") + masks.additive(mask_B1S))

    def operations(self, targets: int, memory: int) -> int:
        """Return those of attention, context and gate, forward and for one example."""
        attention = 0
        if self.parts and targets:
            attention = self.of_memory.operations(memory) + self.of_state.operations(targets)
            attention += self.score.operations(targets * memory)
        return attention + 2 * targets * memory * self.width + self.gate.operations(targets)


def over_vocabulary(attention_BTS: Tensor, ids_BS: Tensor, words: int) -> Tensor:
    """Add up the attention on every word of the source, float32 [B, T, V].

    Example:
        attention [0.5 0.3 0.2] on ids [7 9 7] -> 0.7 at 7, 0.3 at 9, 0 elsewhere
    """
    batch, targets, length = ops.shape(attention_BTS)
    rows_BS = ops.cast(ids_BS, "int32") + words * ops.arange(batch, dtype="int32")[:, None]
    attention_BST = ops.transpose(ops.cast(attention_BTS, "float32"), (0, 2, 1))
    summed = ops.segment_sum(
        ops.reshape(attention_BST, (batch * length, targets)), ops.reshape(rows_BS, (-1,)), num_segments=batch * words
    )
    return ops.transpose(ops.reshape(summed, (batch, words, targets)), (0, 2, 1))
