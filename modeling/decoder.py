"""The Transformer decoder: causal self-attention, optional cross-attention, cached steps (Vaswani et al. 2017).

Serves PALM and PLUG (causal, with cross-attention) and VECO, causal when it generates and else not: the same blocks
with a memory and without.
"""

from functools import partial
from typing import Any

from ground.tensors import Tensor, ops
from modeling import masks
from modeling.computation import Sizes
from modeling.config import Config
from modeling.encoder import Brick, Bricks, Encoder
from modeling.layers import Attention, KeyValue
from modeling.variables import Initialization

Cache = dict[str, list[KeyValue]]


class Decoder(Encoder):
    """An encoder whose blocks may also attend to a memory, and which can run one position at a time."""

    def __init__(
        self,
        config: Config,
        initialization: Initialization,
        *,
        causal: bool = True,
        cross_attention: bool = True,
        remat: bool = False,
        scan: bool = False,
        dtype: Any,
        name: str = "decoder",
    ) -> None:
        super().__init__(config, initialization, remat=remat, scan=scan, dtype=dtype, name=name)
        self.causal = causal
        self.cross_attentions = [
            Attention(config, initialization, dtype=dtype, name=f"cross_{attention.name}")
            for attention in (self.attentions if cross_attention else ())
        ]

    def build(self, input_shape: Any = None) -> None:
        """Build every distinct brick once."""
        super().build(input_shape)
        for layer in self.cross_attentions:
            layer.build(None)

    def call(
        self,
        x_BLD: Tensor,
        attention_mask: Tensor | None = None,
        training: bool = False,
        first_only: bool = False,
        memory_BSD: Tensor | None = None,
        memory_mask: Tensor | None = None,
        return_attention: bool = False,
    ) -> Any:
        """Run all blocks over a whole sequence.

        Args:
            x_BLD: embedded tokens.
            attention_mask: boolean, broadcasts to [B, N, L, L]; a causal decoder adds its own.
            training: apply dropout; needs a `seeded` scope.
            first_only: of `Encoder.call`; not together with `return_attention`.
            memory_BSD: states that cross-attention reads; without them the blocks skip their cross-attention.
            memory_mask: boolean, broadcasts to [B, N, L, S].
            return_attention: also return where the last block's cross-attention looks, for copying.

        Returns:
            As Encoder; with `return_attention` a third value, the mean over the heads, float32 [B, L, S].
        """
        if self.causal:
            length = ops.shape(x_BLD)[1]
            causal = masks.causal_mask(length, length)
            attention_mask = causal if attention_mask is None else ops.logical_and(attention_mask, causal)
        memory = () if memory_BSD is None else (memory_BSD,)

        def block(bricks: Bricks, x_BLD: Tensor, *memory: Tensor, first_only: bool = False) -> Tensor:
            attention, *cross_attentions, feed_forward = bricks
            x_BLD = attention(x_BLD, attention_mask=attention_mask, training=training, first_only=first_only)
            for cross in cross_attentions:
                pair = cross.keys_values(*memory)
                x_BLD = cross(x_BLD, memory=pair, attention_mask=memory_mask, training=training)
            return feed_forward(x_BLD, training=training)

        blocks = self._bricks() if memory else super()._bricks()
        if not return_attention:
            last = partial(block, first_only=True) if first_only else None
            return self.run_blocks(block, blocks, x_BLD, *memory, training=training, last_block=last)
        seen: list[Tensor] = []

        def last_block(bricks: Bricks, x_BLD: Tensor, memory_BSD: Tensor) -> Tensor:
            attention, cross, feed_forward = bricks
            x_BLD = attention(x_BLD, attention_mask=attention_mask, training=training)
            pair = cross.keys_values(memory_BSD)
            seen.append(ops.mean(cross.attention_weights(x_BLD, pair, memory_mask), axis=1))
            x_BLD = cross(x_BLD, memory=pair, attention_mask=memory_mask, training=training)
            return feed_forward(x_BLD, training=training)

        x_BLD, states = self.run_blocks(block, blocks, x_BLD, *memory, training=training, last_block=last_block)
        return x_BLD, states, seen[0]

    def sized_blocks(self, sizes: Sizes) -> list[list[tuple[Brick, Sizes]]]:
        """Return the bricks of every block: without `sizes.memory` to read they skip their cross-attention."""
        own, across = Sizes(sizes.tokens), Sizes(sizes.tokens, memory=sizes.memory)
        blocks = self._bricks() if sizes.memory else super()._bricks()
        return [[(brick, across if brick in self.cross_attentions else own) for brick in bricks] for bricks in blocks]

    def _bricks(self) -> list[Bricks]:
        crosses = self.cross_attentions
        return [(self.attentions[i], *crosses[i : i + 1], self.feed_forwards[j]) for i, j in self.order]

    def start_cache(self, batch: int | Tensor, length: int, memory_BSD: Tensor | None = None) -> Cache:
        """Return an empty cache of `length` positions per block, and the memory's keys and values, projected once."""
        attention = self.attentions[0]
        empty = ops.zeros((batch, attention.heads, length, attention.head_size), self.compute_dtype)
        return {
            "self": [(empty, empty) for _ in self.order],
            "memory": [] if memory_BSD is None else self.project_memory(memory_BSD),
        }

    def project_memory(self, memory_BSD: Tensor) -> list[KeyValue]:
        """Return the keys and values of the memory for every block's cross-attention; shared bricks project it once."""
        pairs = [cross.keys_values(memory_BSD) for cross in self.cross_attentions]
        return [pairs[i] for i, _ in self.order]

    def step(
        self,
        x_BLD: Tensor,
        cache: Cache,
        position: int | Tensor | None,
        memory_mask: Tensor | None = None,
        visible: Tensor | None = None,
        return_attention: bool = False,
    ) -> Any:
        """Run all blocks over the next positions; equals `call` on the whole.

        The positions may as well be the newest tokens of several hypotheses of one source: `visible` then says which
        earlier ones are each one's own. Two beams at their second token, the first beam having come from the second:
            slots [(beam 0, beam 1) of token 0, (beam 0, beam 1) of token 1]
            visible of beam 0 [F T, T F], of beam 1 [T F, F T]

        Args:
            x_BLD: the new tokens, embedded at their positions.
            cache: from `start_cache` or the step before.
            position: index in the cache of the first new token; with None, and `visible`, the cache grows.
            memory_mask: as in `call`.
            visible: boolean, broadcasts to [B, N, L, length of the cache]; by default all up to each token itself.
            return_attention: as in `call`.

        Returns:
            The last states, the cache, and with `return_attention` a third value as of `call`.
        """
        keys = ops.shape(cache["self"][0][0])[2]
        new = ops.shape(x_BLD)[1]
        visible = masks.causal_mask(new, keys, position) if visible is None else visible
        written = []
        attention_BNLS = None
        for block, (i, j) in enumerate(self.order):
            x_BLD, pair = self.attentions[i](
                x_BLD, attention_mask=visible, cache=cache["self"][block], position=position, decoding=True
            )
            written.append(pair)
            if cache["memory"]:
                cross, memory = self.cross_attentions[i], cache["memory"][block]
                if return_attention and block == len(self.order) - 1:
                    attention_BNLS = cross.attention_weights(x_BLD, memory, memory_mask)
                x_BLD = cross(x_BLD, memory=memory, attention_mask=memory_mask, decoding=True)
            x_BLD = self.feed_forwards[j](x_BLD)
        cache = {"self": written, "memory": cache["memory"]}
        if attention_BNLS is None:
            return self.normalized(x_BLD), cache
        return self.normalized(x_BLD), cache, ops.mean(attention_BNLS, axis=1)
