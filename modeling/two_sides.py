"""The body of two texts that read each other: VECO's when it learns (Luo et al. 2021).

Each text has a stream H, which is BERT's encoder and never sees the other text, and a stream S: the same blocks, where
cross-attention reads the other text's last state of H. Where there is one text, S is not computed.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from ground.tensors import Tensor, ops
from modeling import masks
from modeling.body import Backbone
from modeling.computation import Computation, Sizes, States
from modeling.config import Config
from modeling.decoder import Decoder
from modeling.variables import Initialization

_OTHER = "other_"
_SIDES = ("input_ids", "input_mask", "segment_ids", "sequence_ids")


def side_by_side(x: Tensor, other: Tensor) -> Tensor:
    """Return [2B, ..] of two [B, ..]: every row, and behind it its other.

    Halves would be rolled over the devices that a batch is cut over; here a row and its other stay on one.
    """
    both = ops.stack([x, other], axis=1)
    return ops.reshape(both, (-1, *ops.shape(both)[2:]))


def apart(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two of `side_by_side`."""
    both = ops.reshape(x, (-1, 2, *ops.shape(x)[1:]))
    return both[:, 0], both[:, 1]


def swapped(x: Tensor) -> Tensor:
    """Return the rows of `side_by_side`, each in the place of its other."""
    return side_by_side(*reversed(apart(x)))


class TwoSides(Backbone):
    """Features -> what `Backbone` returns of a text, and with `other_input_ids` the streams of a pair of texts."""

    def __init__(self, config: Config, initialization: Initialization, computation: Computation) -> None:
        super().__init__(config, initialization, computation, stack=partial(Decoder, causal=False))

    def call(
        self,
        features: Mapping[str, Tensor],
        training: bool = False,
        word_noise_BLE: Tensor | None = None,
        first_only: bool = False,
    ) -> dict[str, Any]:
        """Encode a text alone or, with `other_input_ids`, two texts of equal length.

        Args:
            features: of `Backbone.call`, and `other_` before the name of each for the other text.
            training: apply dropout, keyed by the surrounding `seeded` scope.
            word_noise_BLE: added to the word vectors of the first text (adversarial training).
            first_only: of `Backbone.call`. Of a pair the last block of S computes no other position; that of H does,
                because S reads them.

        Returns:
            Of a pair what `Backbone` returns of the first text's H; further `crossed_output` x_BLD, its S, and
            `other_sequence_output`, `other_pooled_output` and `other_crossed_output`. S of each text begins with the
            embeddings that its H begins with.
        """
        if f"{_OTHER}input_ids" not in features:
            return super().call(features, training=training, word_noise_BLE=word_noise_BLE, first_only=first_only)
        pairs = {name: (features[name], features[_OTHER + name]) for name in _SIDES if _OTHER + name in features}
        both = {name: side_by_side(*pair) for name, pair in pairs.items()}
        if word_noise_BLE is not None:
            word_noise_BLE = side_by_side(word_noise_BLE, ops.zeros_like(word_noise_BLE))
        outputs = super().call(both, training=training, word_noise_BLE=word_noise_BLE)
        states = outputs["hidden_states"]
        crossed, _ = self.encoder(
            states[0],
            attention_mask=self.attention_mask(both),
            memory_BSD=swapped(outputs["sequence_output"]),
            memory_mask=self.memory_mask(both),
            training=training,
            first_only=first_only,
        )
        own = {name: apart(outputs[name]) for name in ("sequence_output", "pooled_output")}
        own |= {"crossed_output": apart(crossed)}
        if first_only:
            own["sequence_output"] = tuple(x[:, :1] for x in own["sequence_output"])
        found: dict[str, Any] = {name: x for name, (x, _) in own.items()}
        found |= {_OTHER + name: x for name, (_, x) in own.items()}
        found["hidden_states"] = [apart(x)[0] for x in states[:-1]]
        found["hidden_states"].append(apart(states[-1])[0][:, :1] if first_only else apart(states[-1])[0])
        return found

    def memory_mask(self, both: Mapping[str, Tensor]) -> Tensor | None:
        """Return which positions of its other each row of both reads, boolean [2B, 1, 1 or L, L]; None for all."""
        if "sequence_ids" in both:
            return masks.sequence_mask(both["sequence_ids"], swapped(both["sequence_ids"]))
        mask = self.attention_mask(both)
        return None if mask is None else swapped(mask)

    def operations(self, sizes: Sizes) -> int:
        """Return those of every stream, forward and for one example; without `sizes.other` those of one text."""
        alone, across = _streams(sizes)
        crossed = sum(self.encoder.operations(stream) for stream in across)
        return sum(super(TwoSides, self).operations(text) for text in alone) + crossed

    def states(self, sizes: Sizes) -> list[States]:
        """Return those of every stream."""
        alone, across = _streams(sizes)
        return [state for stream in (*alone, *across) for state in self.encoder.states(stream)]

    def computed_positions(self, sizes: Sizes) -> int:
        """Return those of every stream."""
        alone, across = _streams(sizes)
        return sum(self.encoder.computed_positions(stream) for stream in (*alone, *across))


def _streams(sizes: Sizes) -> tuple[list[Sizes], list[Sizes]]:
    """Return what H computes of each text, and S."""
    texts = [length for length in (sizes.tokens, sizes.other) if length]
    across = list(zip(texts, reversed(texts), strict=True)) if sizes.other else []
    return [Sizes(length) for length in texts], [Sizes(length, memory=memory) for length, memory in across]
