"""The Transformer encoder of every model here: post-LN or pre-LN, its bricks shared or not (ALBERT section 3.1)."""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
from absl.app import UsageError

from ground.tensors import Tensor, ops
from modeling.computation import Sizes, States
from modeling.config import Config
from modeling.layers import Attention, FeedForward, LayerNorm
from modeling.randomness import next_key, seeded
from modeling.sharing import shared_bricks
from modeling.variables import Initialization

Brick = Attention | FeedForward
Bricks = tuple[Brick, ...]


class Encoder(keras.layers.Layer):
    """x_BLD -> the hidden states of every depth.

    With `remat`, blocks keep only their input for the backward pass. With `scan`, one block is compiled and looped over
    the weights of all, which are stacked for the loop alone: variables, their names and all numbers stay the same.

    Attributes:
        gather: set by an engine that keeps weights in parts: (variable, value) -> the value as it is computed with. It
            is called inside of the recomputation or the loop, so that the weights of one block at a time are whole.
    """

    def __init__(
        self,
        config: Config,
        initialization: Initialization,
        *,
        remat: bool = False,
        scan: bool = False,
        dtype: Any,
        name: str = "encoder",
    ) -> None:
        # The bricks cast their own variables; here they are read as they are.
        super().__init__(dtype=dtype, name=name, autocast=False)
        self.remat = remat
        self.scan = scan
        self.gather: Callable[[keras.Variable, Tensor], Tensor] | None = None
        bricks = shared_bricks(config)
        attention_ks = sorted({k for k, _ in bricks})
        feed_forward_ks = sorted({k for _, k in bricks})
        if scan and (config.heads_by_brick or config.units_by_brick):
            raise UsageError(
                "--scan_layers: layers of a stripped model differ in width, and a loop needs them alike; leave it out"
            )
        self.attentions = [
            Attention(config, initialization, heads=heads, dtype=dtype, name=f"attention_{k}")
            for k, heads in zip(attention_ks, config.heads_by_brick or [0] * len(attention_ks), strict=True)
        ]
        self.feed_forwards = [
            FeedForward(config, initialization, units=units, dtype=dtype, name=f"feed_forward_{k}")
            for k, units in zip(feed_forward_ks, config.units_by_brick or [0] * len(feed_forward_ks), strict=True)
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
        self,
        x_BLD: Tensor,
        attention_mask: Tensor | None = None,
        training: bool = False,
        first_only: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run all blocks.

        Args:
            x_BLD: embedded tokens.
            attention_mask: boolean, broadcasts to [B, N, L, L]; True keeps.
            training: apply dropout; needs a `seeded` scope.
            first_only: compute the last block at the first position alone; the last state is then x_B1D.

        Returns:
            The last state (normalised, with a final LayerNorm), and the states before the first and after every block.
        """

        def block(bricks: Bricks, x_BLD: Tensor, first_only: bool = False) -> Tensor:
            attention, feed_forward = bricks
            x_BLD = attention(x_BLD, attention_mask=attention_mask, training=training, first_only=first_only)
            return feed_forward(x_BLD, training=training)

        last_block = partial(block, first_only=True) if first_only else None
        return self.run_blocks(block, self._bricks(), x_BLD, training=training, last_block=last_block)

    def attention_weights(
        self, states: Sequence[Tensor], attention_mask: Tensor | None, blocks: Sequence[int]
    ) -> list[Tensor]:
        """Return where the self-attention of some blocks looks, float32 [B, N, L, L] each; without dropout.

        Args:
            states: those that `call` returns.
            attention_mask: as in `call`.
            blocks: their numbers, from 0.
        """
        found = []
        for number in blocks:
            attention, *_ = bricks = self._bricks()[number]
            assert isinstance(attention, Attention)
            with self._gathered(bricks):
                found.append(attention.attention_weights(states[number], attention_mask=attention_mask))
        return found

    def _bricks(self) -> list[Bricks]:
        """Return the bricks of every block in order."""
        return [(self.attentions[i], self.feed_forwards[j]) for i, j in self.order]

    def sized_blocks(self, sizes: Sizes) -> list[list[tuple[Brick, Sizes]]]:
        """Return the bricks of every block with the sizes that each computes."""
        return [[(brick, sizes) for brick in bricks] for bricks in self._bricks()]

    def operations(self, sizes: Sizes) -> int:
        """Return those of all blocks, forward and for one example."""
        return sum(brick.operations(own) for block in self.sized_blocks(sizes) for brick, own in block)

    def computed_positions(self, sizes: Sizes) -> int:
        """Return the sum over all bricks of the positions that each computes."""
        return sum(own.tokens + own.queries for block in self.sized_blocks(sizes) for _, own in block)

    def states(self, sizes: Sizes) -> list[States]:
        """Return the elements of every block, for one example."""
        return [sum((brick.states(own) for brick, own in block), start=States()) for block in self.sized_blocks(sizes)]

    def run_blocks(
        self,
        block: Callable[..., Tensor],
        blocks: Sequence[Bricks],
        x_BLD: Tensor,
        *memory: Tensor,
        training: bool,
        last_block: Callable[..., Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Apply `block(bricks, x_BLD, *memory)` once for the bricks of every block; return what `call` does.

        Where there is a `last_block`, it is applied to the last bricks instead, and neither recomputed nor looped over.
        """
        keys = [next_key() if training else None for _ in blocks]
        alike = len(blocks) if last_block is None else len(blocks) - 1
        if self.scan and alike > 0:
            states = self._scanned(block, blocks[:alike], keys[:alike], x_BLD, *memory)
        else:
            states = [x_BLD]
            for bricks, key in zip(blocks[:alike], keys[:alike], strict=True):

                def run(x_BLD: Tensor, *memory: Tensor, bricks: Bricks = bricks, key: Tensor | None = key) -> Tensor:
                    with seeded(key), self._gathered(bricks):
                        return block(bricks, x_BLD, *memory)

                states.append((keras.remat(run) if self.remat and training else run)(states[-1], *memory))
        if last_block is not None and blocks:
            with seeded(keys[-1]), self._gathered(blocks[-1]):
                states.append(last_block(blocks[-1], states[-1], *memory))
        return self.normalized(states[-1]), states

    def normalized(self, x_BLD: Tensor) -> Tensor:
        """Apply the final LayerNorm, in a stack that has one."""
        return x_BLD if self.layer_norm is None else self.layer_norm(x_BLD)

    @property
    def own_weights(self) -> list[keras.Variable]:
        """The weights that a single block uses."""
        users = [brick for pair in self._bricks() for brick in pair]
        return [variable for brick in users if users.count(brick) == 1 for variable in brick.weights]

    def _gathered(self, bricks: Bricks) -> contextlib.AbstractContextManager[Any]:
        if self.gather is None:
            return contextlib.nullcontext()
        weights = [variable for brick in bricks for variable in brick.weights]
        mapping = [(variable, self.gather(variable, ops.convert_to_tensor(variable))) for variable in weights]
        return keras.StatelessScope(mapping, initialize_variables=False)

    def _scanned(
        self,
        block: Callable[..., Tensor],
        blocks: Sequence[Bricks],
        keys: Sequence[Tensor | None],
        x_BLD: Tensor,
        *memory: Tensor,
    ) -> list[Tensor]:
        """Return the states from one loop over the blocks."""
        training = keys[0] is not None
        # The loop's body is traced once, with the first block's variables: they take the values of each block in turn.
        columns = list(zip(*([v for brick in bricks for v in brick.weights] for bricks in blocks), strict=True))
        own = [column for column in columns if any(variable is not column[0] for variable in column)]
        shared = [column[0] for column in columns if all(variable is column[0] for variable in column)]
        variables = [column[0] for column in own] + shared

        def stacked(column: Sequence[keras.Variable]) -> Tensor:
            # Matrices are copied in the type that they are multiplied in.
            values = [ops.expand_dims(variable, 0) for variable in column]
            matrices = len(column[0].shape) > 1
            return ops.concatenate([ops.cast(value, self.compute_dtype) if matrices else value for value in values])

        shared_values = [ops.convert_to_tensor(variable) for variable in shared]

        def body(x_BLD: Tensor, of_block: tuple[list[Tensor], list[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
            own_values, key, _ = of_block

            def run(x_BLD: Tensor, values: list[Tensor], *memory: Tensor) -> Tensor:
                mapping = list(zip(variables, values, strict=True))
                if self.gather is not None:
                    mapping = [(variable, self.gather(variable, value)) for variable, value in mapping]
                with keras.StatelessScope(mapping, initialize_variables=False), seeded(key[0] if key else None):
                    return block(blocks[0], x_BLD, *memory)

            y_BLD = (keras.remat(run) if self.remat and training else run)(
                x_BLD, [*own_values, *shared_values], *memory
            )
            return y_BLD, y_BLD

        stacks = [stacked(column) for column in own]
        # The numbers of the blocks, as Keras refuses to scan nothing: all weights may be shared.
        scanned = (stacks, [ops.stack(keys)] if training else [], ops.arange(len(blocks)))
        _, states = ops.scan(body, x_BLD, scanned, length=len(blocks))
        return [x_BLD, *ops.unstack(states, num=len(blocks))]
