"""The body of a model, from tokens to hidden states; BERT's (Devlin et al. 2019): embeddings, encoder and pooler.

A family with another body (an encoder and a decoder, another attention mask) is another class that fulfils `Body`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import keras

from ground.tensors import Tensor, ops
from modeling import masks
from modeling.computation import Computation, Sizes, States
from modeling.config import Config
from modeling.embeddings import Embeddings
from modeling.encoder import Encoder
from modeling.layers import Dense
from modeling.variables import Initialization


class Body(Protocol):
    """The interface of a body, a Keras layer of the name `backbone`, for the model and its heads."""

    embeddings: Embeddings

    @property
    def stacks(self) -> tuple[Encoder, ...]:
        """The stacks of blocks, whose weights an engine may gather block by block."""
        ...

    def build(self, input_shape: Any = None) -> None: ...

    def operations(self, sizes: Sizes) -> int:
        """Return the floating-point operations of one example, forward."""
        ...

    def states(self, sizes: Sizes) -> list[States]:
        """Return the elements of every block that is computed, for one example."""
        ...

    def computed_positions(self, sizes: Sizes) -> int:
        """Return the sum over all bricks of the positions that each computes, for one example."""
        ...

    def __call__(self, features: Mapping[str, Tensor], training: bool = False, **further: Any) -> dict[str, Any]: ...


class Backbone(keras.layers.Layer):
    """Features -> `sequence_output` x_BLD, `pooled_output` x_BD and `hidden_states` (embedding, then every block)."""

    def __init__(
        self,
        config: Config,
        initialization: Initialization,
        computation: Computation,
        *,
        projects_first: bool = False,
        stack: Callable[..., Encoder] = Encoder,
        name: str = "backbone",
    ) -> None:
        dtype = computation.dtype
        super().__init__(dtype=dtype, name=name)
        self.config = config
        self.embeddings = Embeddings(config, initialization, projects_first=projects_first, dtype=dtype)
        remat, scan = computation.remat, computation.scan
        self.encoder = stack(config, initialization, remat=remat, scan=scan, dtype=dtype, name="encoder")
        self.pooler = Dense(config.hidden_size, config.hidden_size, initialization, dtype=dtype, name="pooler")

    @property
    def stacks(self) -> tuple[Encoder, ...]:
        """The encoder alone."""
        return (self.encoder,)

    def build(self, input_shape: Any = None) -> None:
        """Build embeddings, encoder and pooler."""
        for layer in (self.embeddings, self.encoder, self.pooler):
            layer.build(None)

    def attention_mask(self, features: Mapping[str, Tensor]) -> Tensor | None:
        """Return which keys each position attends to, boolean [B, 1, 1 or L, L]; None keeps all.

        With `sequence_ids` a row holds several sequences, and a position attends to its own sequence only.
        """
        if "sequence_ids" in features:
            return masks.sequence_mask(features["sequence_ids"])
        return masks.padding_mask(features["input_mask"]) if "input_mask" in features else None

    def call(
        self,
        features: Mapping[str, Tensor],
        training: bool = False,
        word_noise_BLE: Tensor | None = None,
        first_only: bool = False,
    ) -> dict[str, Any]:
        """Encode `input_ids` under `input_mask` (default: all real) with `segment_ids` (default: all 0).

        With `sequence_ids` each sequence of a row is encoded as if it were alone, and `pooled_output` is that of the
        row's first. `places` says at which position of a sequence each token stands, where it is not its place in the
        row.

        Args:
            features: int32 [B, L] each.
            training: apply dropout, keyed by the surrounding `seeded` scope.
            word_noise_BLE: added to the looked-up word vectors (adversarial training).
            first_only: compute the last block at each row's first position alone, whose states are then all that
                `sequence_output` and the last of `hidden_states` hold, x_B1D.
        """
        x_BLD = self.embeddings(
            features["input_ids"],
            segment_ids_BL=features.get("segment_ids"),
            word_noise_BLE=word_noise_BLE,
            training=training,
            sequence_ids_BL=features.get("sequence_ids"),
            places_BL=features.get("places"),
        )
        x_BLD, states = self.encoder(
            x_BLD, attention_mask=self.attention_mask(features), training=training, first_only=first_only
        )
        x_BLD = self.finished(x_BLD)
        return {"sequence_output": x_BLD, "pooled_output": self.pooled(x_BLD), "hidden_states": states}

    def finished(self, x_BLD: Tensor) -> Tensor:
        """Return what heads and decoders read of the encoder's last state: the state itself."""
        return x_BLD

    def pooled(self, x_BLD: Tensor) -> Tensor:
        """Return the vector of the whole row, x_BD: the first token's state through a dense layer and a tanh."""
        return ops.tanh(self.pooler(x_BLD[:, 0]))

    def operations(self, sizes: Sizes) -> int:
        """Return those of embeddings, encoder and pooler, forward and for one example."""
        return self.embeddings.operations(sizes) + self.encoder.operations(sizes) + self.pooler.operations(1)

    def states(self, sizes: Sizes) -> list[States]:
        """Return those of the encoder."""
        return self.encoder.states(sizes)

    def computed_positions(self, sizes: Sizes) -> int:
        """Return those of the encoder."""
        return self.encoder.computed_positions(sizes)
