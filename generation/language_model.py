"""A language model as what text is generated with: the encoder and decoder of its body, the scores of its head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl.app import UsageError

from generation.model import Features, SelfCache, Tensors, Tokens, lengths_of
from ground.tensors import Tensor, ops
from modeling.encoder_decoder import EncoderDecoder
from modeling.heads import NextTokenHead
from modeling.model import LanguageModel


class Generative:
    """See `generation.model.Decodable`.

    Args:
        model: with a decoder and a `NextTokenHead`.
        tokens: the special ids of the target side.

    Raises:
        UsageError: the model generates no text.
    """

    def __init__(self, model: LanguageModel, tokens: Tokens) -> None:
        heads = [head for head in model.heads if isinstance(head, NextTokenHead)]
        if not isinstance(model.backbone, EncoderDecoder) or model.backbone.decoder is None or not heads:
            raise UsageError(
                f'a model of family "{model.config.family}" without a decoder generates no text: use a checkpoint that '
                "was trained to, as with --objective=palm"
            )
        self.model = model
        self.tokens = tokens
        self.body = model.backbone
        self.decoder = model.backbone.decoder
        self.copying = heads[0].copying
        self.vocab_size = model.config.vocab_size

    @property
    def max_new_tokens(self) -> int:
        """The positions of the decoder."""
        return self.body.target_embeddings.max_positions

    @property
    def max_source_tokens(self) -> int:
        """The positions of the encoder."""
        return self.model.config.max_sequence_length

    @property
    def variables(self) -> Sequence[Any]:
        """All of the model."""
        return self.model.variables

    def lengths(self, features: Features) -> np.ndarray:
        """Return the tokens of each source, up to the last that encoder or decoder reads."""
        return lengths_of(features)

    def prepare(self) -> Tensors:
        """Return the output matrix [D, V], without the rows that pad the word table: they are no words."""
        embeddings = self.body.target_embeddings
        table_VD = ops.convert_to_tensor(embeddings.word_embeddings)[: self.vocab_size]
        prepared = {"output": ops.cast(ops.transpose(table_VD), embeddings.compute_dtype)}
        bias_V = getattr(embeddings, "output_bias", None)
        return prepared if bias_V is None else prepared | {"bias": ops.convert_to_tensor(bias_V)[: self.vocab_size]}

    def start(self, features: Mapping[str, Tensor]) -> Tensors:
        """Encode the sources and project their states to keys and values; for copying keep states and ids."""
        states_BSD = self.body(features, training=False)["sequence_output"]
        memory: Tensors = {"cross": self.decoder.project_memory(states_BSD), "mask": self.body.memory_mask(features)}
        if self.copying is not None:
            mask_BS = features.get("memory_mask", features["input_mask"])
            source = {"ids": features["input_ids"], "mask": mask_BS, "states": states_BSD}
            memory["source"] = source | self.copying.project(states_BSD)
        return memory

    def empty_cache(self, batch: int, slots: int) -> SelfCache:
        """Return the self-attention cache of the decoder's blocks."""
        return self.decoder.start_cache(batch, slots)["self"]

    def step(
        self,
        tokens_BK: Tensor,
        position: Tensor,
        memory: Tensors,
        cache: SelfCache,
        visible: Tensor,
        slot: Tensor | None,
        prepared: Tensors,
    ) -> tuple[Tensor, SelfCache]:
        """Run the decoder over the newest token of every row; with copying the scores are log-probabilities.

        Without a slot the cache grows by the keys and values of this step.
        """
        x_BKD = self.body.embed_target(tokens_BK, position)
        x_BKD, held, *attention = self.decoder.step(
            x_BKD,
            {"self": cache, "memory": memory["cross"]},
            slot,
            memory["mask"],
            visible,
            return_attention=self.body.copies_by_attention,
        )
        batch, rows, width = ops.shape(x_BKD)
        scores_MV = ops.matmul(ops.reshape(x_BKD, (batch * rows, width)), prepared["output"])
        scores_BKV = ops.reshape(ops.cast(scores_MV, "float32"), (batch, rows, self.vocab_size))
        if "bias" in prepared:
            scores_BKV = scores_BKV + prepared["bias"]
        if self.copying is not None:
            source = {**memory["source"], **({"attention": attention[0]} if attention else {})}
            scores_BKV = self.copying(scores_BKV, source, x_BKD)
        return scores_BKV, held["self"]
