"""The Transformer encoder of every model here: post-LN or pre-LN, its bricks shared or not (ALBERT section 3.1)."""

from typing import Any

import keras

from modeling.albert import shared_bricks
from modeling.config import Config
from modeling.layers import Attention, FeedForward, LayerNorm
from modeling.randomness import next_key, seeded
from modeling.variables import Initialization

Tensor = Any


class Encoder(keras.layers.Layer):
    """x_BLD -> the hidden states of every depth. With `remat`, blocks keep only their input for the backward pass."""

    def __init__(
        self,
        config: Config,
        initialization: Initialization,
        *,
        remat: bool = False,
        dtype: Any,
        name: str = "encoder",
    ) -> None:
        super().__init__(dtype=dtype, name=name)
        self.remat = remat
        bricks = shared_bricks(config)
        attention_ks = sorted({k for k, _ in bricks})
        feed_forward_ks = sorted({k for _, k in bricks})
        self.attentions = [Attention(config, initialization, dtype=dtype, name=f"attention_{k}") for k in attention_ks]
        self.feed_forwards = [
            FeedForward(config, initialization, dtype=dtype, name=f"feed_forward_{k}") for k in feed_forward_ks
        ]
        self.order = tuple((attention_ks.index(i), feed_forward_ks.index(j)) for i, j in bricks)
        self.layer_norm = None
        if config.final_layer_norm:
            self.layer_norm = LayerNorm(config.hidden_size, config.layer_norm_eps, dtype=dtype)

    def build(self, input_shape: Any = None) -> None:
        """Build every distinct brick once."""
        for layer in (*self.attentions, *self.feed_forwards):
            layer.build(None)
        if self.layer_norm is not None:
            self.layer_norm.build(None)

    def call(
        self, x_BLD: Tensor, attention_mask: Tensor | None = None, training: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Run all blocks.

        Args:
            x_BLD: embedded tokens.
            attention_mask: boolean, broadcasts to [B, N, L, L]; True keeps.
            training: apply dropout; needs a `seeded` scope.

        Returns:
            The last state (normalised, with a final LayerNorm), and the states before the first and after every block.
        """
        states = [x_BLD]
        for attention_index, feed_forward_index in self.order:
            attention, feed_forward = self.attentions[attention_index], self.feed_forwards[feed_forward_index]
            key = next_key() if training else None

            def block(x: Tensor, attention=attention, feed_forward=feed_forward, key=key) -> Tensor:
                with seeded(key):
                    x = attention(x, attention_mask=attention_mask, training=training)
                    return feed_forward(x, training=training)

            states.append(keras.remat(block)(states[-1]) if self.remat and training else block(states[-1]))
        last = states[-1] if self.layer_norm is None else self.layer_norm(states[-1])
        return last, states
