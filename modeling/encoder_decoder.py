"""The body of an encoder and a decoder (Vaswani et al. 2017): PALM's and PLUG's, and VECO's when it generates.

The decoder reads the target's first tokens and the encoder's last states. Its embeddings are the encoder's unless a
family brings its own.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ground.tensors import Tensor, ops
from modeling import masks
from modeling.body import Backbone
from modeling.computation import Computation, Sizes, States
from modeling.config import Config
from modeling.decoder import Decoder
from modeling.embeddings import Embeddings
from modeling.encoder import Encoder
from modeling.variables import Initialization


class TargetEmbeddings(Protocol):
    """The interface of a decoder's word table: target ids -> vectors, states -> scores."""

    def build(self, input_shape: Any = None) -> None: ...

    def __call__(self, input_ids_BL: Tensor, *, position: int | Tensor = 0, training: bool = False) -> Tensor: ...

    @property
    def max_positions(self) -> int:
        """The most positions of a target."""
        ...

    def logits(self, x: Tensor) -> Tensor:
        """Return the scores of every word, float32 [.., V]."""
        ...

    def logits_operations(self, positions: int) -> int:
        """Return the floating-point operations of `logits` at so many positions."""
        ...


class EncoderDecoder(Backbone):
    """Features -> what `Backbone` returns of the source, and with `target_ids` the states of the target.

    Args:
        config: graph and shapes of the encoder; `num_decoder_layers` 0 is an encoder alone.
        decoder_config: of the decoder's stack.
        initialization: of the variables.
        computation: precision, rematerialisation and scan.
        target_embeddings: makes the decoder's of the encoder's, which by default are the decoder's too.
        pools: whether the pooled vector goes through the pooler; otherwise it is the first state itself.
        normalizes_twice: whether the encoder's final LayerNorm is applied to its own result once more.
    """

    def __init__(
        self,
        config: Config,
        decoder_config: Config | None,
        initialization: Initialization,
        computation: Computation,
        *,
        target_embeddings: Callable[[Embeddings], Any] | None = None,
        pools: bool = False,
        normalizes_twice: bool = False,
    ) -> None:
        super().__init__(config, initialization, computation)
        self.pools = pools
        self.normalizes_twice = normalizes_twice and self.encoder.layer_norm is not None
        self.target_embeddings = target_embeddings(self.embeddings) if target_embeddings else self.embeddings
        self.decoder = None
        if decoder_config is not None:
            remat, scan = computation.remat, computation.scan
            self.decoder = Decoder(decoder_config, initialization, remat=remat, scan=scan, dtype=computation.dtype)

    @property
    def stacks(self) -> tuple[Encoder, ...]:
        """Encoder and decoder."""
        return (self.encoder,) if self.decoder is None else (self.encoder, self.decoder)

    def build(self, input_shape: Any = None) -> None:
        """Build both halves."""
        super().build(input_shape)
        if self.decoder is not None:
            if self.target_embeddings is not self.embeddings:
                self.target_embeddings.build(None)
            self.decoder.build(None)

    def finished(self, x_BLD: Tensor) -> Tensor:
        """Return what heads and the decoder read of the encoder's last state."""
        return self.encoder.normalized(x_BLD) if self.normalizes_twice else x_BLD

    def pooled(self, x_BLD: Tensor) -> Tensor:
        """Return the first token's state, x_BD."""
        return super().pooled(x_BLD) if self.pools else x_BLD[:, 0]

    def call(
        self,
        features: Mapping[str, Tensor],
        training: bool = False,
        word_noise_BLE: Tensor | None = None,
        first_only: bool = False,
    ) -> dict[str, Any]:
        """Encode the source and, with `target_ids` [B, T + 1], decode its first T tokens.

        Args:
            features: of `Backbone.call`; `target_ids` int32; `memory_mask` [B, S], the positions that the decoder may
                read where they are not those of `input_mask`.
            training: apply dropout, keyed by the surrounding `seeded` scope.
            word_noise_BLE: added to the word vectors of the source (adversarial training).
            first_only: of `Backbone.call`; for heads on the encoder, as a decoder reads every position.

        Returns:
            Further `decoder_output` x_BTD, `decoder_states`, and `copy_attention` float32 [B, T, S] where words are
            copied by the decoder's attention.
        """
        outputs = super().call(features, training=training, word_noise_BLE=word_noise_BLE, first_only=first_only)
        if self.decoder is None or "target_ids" not in features:
            return outputs
        x_BTD = self.target_embeddings(features["target_ids"][:, :-1], training=training)
        x_BTD, states, *attention = self.decoder(
            x_BTD,
            memory_BSD=outputs["sequence_output"],
            memory_mask=self.memory_mask(features),
            training=training,
            return_attention=self.copies_by_attention,
        )
        outputs |= {"decoder_output": x_BTD, "decoder_states": states}
        return outputs | ({"copy_attention": attention[0]} if attention else {})

    @property
    def copies_by_attention(self) -> bool:
        """Whether the attention of the last block says which words are copied."""
        return self.config.copy in ("attention", "legacy_attention")

    def memory_mask(self, features: Mapping[str, Tensor]) -> Tensor | None:
        """Return which positions of the source the decoder reads, boolean [B, 1, 1, S]; None for all."""
        mask_BS = features.get("memory_mask", features.get("input_mask"))
        return None if mask_BS is None else masks.padding_mask(mask_BS)

    def embed_target(self, tokens_BK: Tensor, position: int | Tensor) -> Tensor:
        """Embed tokens that all stand at one position, x_BKD: the next tokens of several hypotheses."""
        batch, beams = ops.shape(tokens_BK)
        x_M1D = self.target_embeddings(ops.reshape(tokens_BK, (-1, 1)), position=position)
        return ops.reshape(x_M1D, (batch, beams, x_M1D.shape[-1]))

    def operations(self, sizes: Sizes) -> int:
        """Return those of both halves, forward and for one example; without `sizes.target` those of the encoder."""
        return super().operations(sizes) + sum(stack.operations(own) for stack, own in self._decoders(sizes))

    def states(self, sizes: Sizes) -> list[States]:
        """Return those of both halves, or without `sizes.target` of the encoder."""
        return super().states(sizes) + [state for stack, own in self._decoders(sizes) for state in stack.states(own)]

    def computed_positions(self, sizes: Sizes) -> int:
        """Return those of both halves, or without `sizes.target` of the encoder."""
        decoders = self._decoders(sizes)
        return super().computed_positions(sizes) + sum(stack.computed_positions(own) for stack, own in decoders)

    def _decoders(self, sizes: Sizes) -> list[tuple[Decoder, Sizes]]:
        """Return the decoder, where there is a target for it, with what it computes."""
        own = Sizes(sizes.target, memory=sizes.tokens)
        return [(self.decoder, own)] if self.decoder is not None and sizes.target else []
