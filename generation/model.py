"""What a model is to the search: the protocol that an encoder-decoder fulfils.

Legend of shapes beside that of modeling/layers.py: K rows of a source (beams or samples), T most generated tokens.
Slot t * K + j of a self-attention cache holds row j's keys and values of position t; nothing in it ever moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ground.tensors import Tensor

Features = Mapping[str, np.ndarray]
Tensors = dict[str, Any]
"""Tensors by name, also in lists and pairs; the leading axis of each is B."""
SelfCache = list[tuple[Tensor, Tensor]]
"""Keys and values of every block, each [B, N, slots, H]."""


@dataclass(frozen=True)
class Tokens:
    """The ids that a decoder begins with, ends with and is padded with."""

    start: int
    end: int
    padding: int


def lengths_of(features: Features) -> np.ndarray:
    """Return the tokens of each source, up to the last that encoder or decoder reads, int [B]."""
    read = [np.asarray(features[name]) > 0 for name in ("input_mask", "memory_mask") if name in features]
    mask = np.logical_or.reduce(read)
    return np.where(mask.any(1), mask.shape[1] - mask[:, ::-1].argmax(1), 0)


class Decodable(Protocol):
    """A model that text can be generated with."""

    @property
    def tokens(self) -> Tokens:
        """The special ids of the target side."""
        ...

    @property
    def vocab_size(self) -> int:
        """V, the columns of `step`'s scores."""
        ...

    @property
    def max_new_tokens(self) -> int:
        """The most positions of the decoder."""
        ...

    @property
    def max_source_tokens(self) -> int:
        """The most positions of the encoder."""
        ...

    @property
    def variables(self) -> Sequence[Any]:
        """Every Keras variable that `prepare`, `start` and `step` read."""
        ...

    def lengths(self, features: Features) -> np.ndarray:
        """Return the tokens of each source, int [B], on the host; features are cut along axis 1 after the longest."""
        ...

    def prepare(self) -> Tensors:
        """Return weights in the layout that decoding reads, such as the output matrix [D, V]; made once a call."""
        ...

    def start(self, features: Mapping[str, Tensor]) -> Tensors:
        """Encode the sources [B, S]: cross-attention's keys and values, masks, ids to copy; never K-fold."""
        ...

    def empty_cache(self, batch: int, slots: int) -> SelfCache:
        """Return a self-attention cache with room for `slots`."""
        ...

    def step(
        self,
        tokens_BK: Tensor,
        position: Tensor,
        memory: Tensors,
        cache: SelfCache,
        visible: Tensor,
        slot: Tensor,
        prepared: Tensors,
    ) -> tuple[Tensor, SelfCache]:
        """Run the decoder over the newest token of every row.

        Args:
            tokens_BK: the newest tokens.
            position: theirs in the target, a scalar int32, the same for all.
            memory: of `start`.
            cache: of `empty_cache` or of the step before.
            visible: boolean [B or 1, 1, K, slots], the slots that each row attends to, this step's included.
            slot: the first slot to write to, `position * K`.
            prepared: of `prepare`.

        Returns:
            Scores float32 [B, K, V], logits or log-probabilities, and the cache with this step's keys and values.
        """
        ...
