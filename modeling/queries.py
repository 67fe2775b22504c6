"""BERT's body with queries: tokens that read a text and are read by none (ERNIE-M, Ouyang et al. 2021).

Masked tokens that are to be recovered from another text alone are its queries, and so are the placeholders of a text
that is yet to be written. At every block they read the states of the text in front of the same block, so that n tokens
with m queries cost n^2 + m n scores, and no mask of n times n is needed. The last block computes the queries alone.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from ground.tensors import Tensor, ops
from modeling.body import Backbone
from modeling.computation import Computation, Sizes, States
from modeling.config import Config
from modeling.encoder import Brick, Bricks, Encoder
from modeling.layers import Attention
from modeling.variables import Initialization


class QueryEncoder(Encoder):
    """An encoder whose rows may end in queries."""

    def call(
        self,
        x_BLD: Tensor,
        attention_mask: Tensor | None = None,
        training: bool = False,
        first_only: bool = False,
        num_queries: int = 0,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run all blocks; see `Encoder.call`. With queries the last state is theirs alone.

        Args:
            x_BLD: embedded tokens, and behind them the queries.
            attention_mask: of the text, boolean, [B, 1, 1, L] where there are queries.
            training: apply dropout; needs a `seeded` scope.
            first_only: of `Encoder.call`; not together with queries.
            num_queries: how many of each row are queries.
        """
        if not num_queries:
            return super().call(x_BLD, attention_mask=attention_mask, training=training, first_only=first_only)

        def block(bricks: Bricks, x_BLD: Tensor, queries_only: bool = False) -> Tensor:
            attention, feed_forward = bricks
            assert isinstance(attention, Attention)
            x_BLD = attention.beside(
                x_BLD, num_queries, attention_mask=attention_mask, training=training, queries_only=queries_only
            )
            return feed_forward(x_BLD, training=training)

        last_block = partial(block, queries_only=True)
        return self.run_blocks(block, self._bricks(), x_BLD, training=training, last_block=last_block)

    def sized_blocks(self, sizes: Sizes) -> list[list[tuple[Brick, Sizes]]]:
        """Return the bricks of every block with the sizes that each computes."""
        if not sizes.queries:
            return super().sized_blocks(sizes)
        last = Sizes(0, memory=sizes.tokens, queries=sizes.queries)
        blocks = self._bricks()
        of_blocks = [sizes] * (len(blocks) - 1) + [last]
        return [[(brick, own) for brick in bricks] for bricks, own in zip(blocks, of_blocks, strict=True)]


class WithQueries(Backbone):
    """Features -> what `Backbone` returns of a text, and with `query_ids` the states of its queries."""

    def __init__(self, config: Config, initialization: Initialization, computation: Computation) -> None:
        super().__init__(config, initialization, computation, stack=QueryEncoder)

    def attention_mask(self, features: Mapping[str, Tensor]) -> Tensor | None:
        """Return which keys each position attends to; see `Backbone.attention_mask`.

        A batch may bring an `attention_mask` of its own, boolean [B, 1, L, L]. With `Config.legacy_mask` the padding is
        read and id 0, the first token, is not: Paddle's exported models compute so, because they get no mask.
        """
        if "attention_mask" in features:
            return features["attention_mask"]
        if self.config.legacy_mask:
            return (features["input_ids"] != 0)[:, None, None, :]
        return super().attention_mask(features)

    def call(
        self,
        features: Mapping[str, Tensor],
        training: bool = False,
        word_noise_BLE: Tensor | None = None,
        first_only: bool = False,
    ) -> dict[str, Any]:
        """Encode a text alone or, with `query_ids`, beside queries.

        Args:
            features: of `Backbone.call`; further int32 `places` [B, L], and `query_ids` and `query_places` [B, P].
                Where tokens say their language, its vector is added to the words: `query_vectors` [B, 1, E] to those
                of all queries, `word_vectors` [B, L, E] to those of a row without queries.
            training: apply dropout, keyed by the surrounding `seeded` scope.
            word_noise_BLE: of `Backbone.call`; not together with queries or `word_vectors`.
            first_only: of `Backbone.call`; without effect beside queries, which are not first.

        Returns:
            What `Backbone` returns of the text. With queries instead `queried_output` x_BPD, their last state, and as
            `hidden_states` those of the text in front of every block, which are as if there were no queries.
        """
        if "query_ids" not in features:
            if "word_vectors" in features:
                assert word_noise_BLE is None
                word_noise_BLE = features["word_vectors"]
            return super().call(features, training=training, word_noise_BLE=word_noise_BLE, first_only=first_only)
        assert word_noise_BLE is None
        ids_BK = ops.concatenate([features["input_ids"], features["query_ids"]], axis=1)
        places_BK = ops.concatenate([features["places"], features["query_places"]], axis=1)
        length, num_queries = features["input_ids"].shape[1], features["query_ids"].shape[1]
        if "query_vectors" in features:
            vectors_B1E = features["query_vectors"]
            is_query_K = ops.cast(ops.arange(length + num_queries) >= length, vectors_B1E.dtype)
            word_noise_BLE = vectors_B1E * is_query_K[None, :, None]
        x_BPD, states = self.encoder(
            self.embeddings(ids_BK, places_BL=places_BK, word_noise_BLE=word_noise_BLE, training=training),
            attention_mask=self.attention_mask(features),
            training=training,
            num_queries=num_queries,
        )
        return {"queried_output": self.finished(x_BPD), "hidden_states": [state[:, :length] for state in states[:-1]]}

    def operations(self, sizes: Sizes) -> int:
        """Return those of one example: with `sizes.other` of two texts, each beside the other's masked tokens."""
        pooled = sum(self.pooler.operations(1) for row in _rows(sizes) if row.queries)
        return sum(super(WithQueries, self).operations(row) for row in _rows(sizes)) - pooled

    def states(self, sizes: Sizes) -> list[States]:
        """Return those of every row."""
        return [state for row in _rows(sizes) for state in super(WithQueries, self).states(row)]

    def computed_positions(self, sizes: Sizes) -> int:
        """Return those of every row."""
        return sum(super(WithQueries, self).computed_positions(row) for row in _rows(sizes))


def _rows(sizes: Sizes) -> list[Sizes]:
    """Return what is computed of one example: a row, or two with half of the scored positions beside each."""
    if not sizes.other:
        return [sizes]
    return [Sizes(length, queries=sizes.scored // 2) for length in (sizes.tokens, sizes.other)]
