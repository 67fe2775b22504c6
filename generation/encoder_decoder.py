"""An encoder-decoder of `modeling` as the search sees it: PALM and PLUG, with their ways of copying."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from absl.app import UsageError

from generation.model import Features, SelfCache, Tensors, Tokens
from ground.tensors import Tensor, ops
from modeling import LanguageModel
from modeling.encoder_decoder import EncoderDecoder
from modeling.heads import NextTokenHead

_SOURCE = ("input_ids", "input_mask", "segment_ids", "memory_mask")


class GenerativeModel:
    """A `LanguageModel` that scores next tokens; fulfils `generation.model.Decodable`.

    Args:
        model: with a decoder and a `NextTokenHead`.
        tokens: the special ids of the target.

    Raises:
        UsageError: the model scores no next tokens.
    """

    def __init__(self, model: LanguageModel, tokens: Tokens) -> None:
        heads = [head for head in model.heads if isinstance(head, NextTokenHead)]
        if not heads:
            raise UsageError("the model generates no text: it scores no next tokens")
        self.model = model
        self.tokens = tokens
        self.body = cast(EncoderDecoder, model.backbone)
        assert self.body.decoder is not None
        self.decoder = self.body.decoder
        self.copying = heads[0].copying
        self.vocab_size = model.config.vocab_size
        self.max_new_tokens = self.body.target_embeddings.max_positions

    @property
    def variables(self) -> Sequence[Any]:
        """Every variable of the model."""
        return self.model.variables

    def lengths(self, features: Features) -> np.ndarray:
        """Return the positions of each source up to the last that encoder or decoder reads."""
        read = [np.asarray(features[name]) > 0 for name in ("input_mask", "memory_mask") if name in features]
        read_BS = np.logical_or.reduce(read)
        return np.max(read_BS * np.arange(1, read_BS.shape[1] + 1), axis=1, initial=0)

    def prepare(self) -> Tensors:
        """Return the output matrix [D, V], which a product reads faster than the word table [V, D]."""
        return self.body.target_embeddings.prepared()

    def start(self, features: Mapping[str, Tensor]) -> Tensors:
        """Encode the sources: keys and values of every block's cross-attention, and what copying reads."""
        source = {name: features[name] for name in _SOURCE if name in features}
        states_BSD = self.body(source, training=False)["sequence_output"]
        memory = {"cross": self.decoder.project_memory(states_BSD), "mask": self.body.memory_mask(source)}
        if self.copying is not None:
            mask_BS = source.get("memory_mask", source["input_mask"])
            memory["copied"] = {"ids": source["input_ids"], "mask": mask_BS, "states": states_BSD}
        return memory

    def empty_cache(self, batch: int | Tensor, slots: int) -> SelfCache:
        """Return the cache of the decoder's self-attention."""
        return self.decoder.start_cache(batch, slots)["self"]

    def step(
        self,
        tokens_BK: Tensor,
        position: Tensor,
        memory: Tensors,
        cache: SelfCache,
        visible: Tensor | None,
        slot: Tensor | None,
        prepared: Tensors,
    ) -> tuple[Tensor, SelfCache]:
        """Score what follows the newest tokens, float32 [B, K, V]; see `Decodable`."""
        x_BKD = self.body.embed_target(tokens_BK, position)
        held = {"self": cache, "memory": memory["cross"]}
        copies = self.body.copies_by_attention
        x_BKD, held, *attention = self.decoder.step(x_BKD, held, slot, memory["mask"], visible, return_attention=copies)
        scores_BKV = self.body.target_embeddings.prepared_logits(x_BKD, prepared)
        if self.copying is not None:
            source = memory["copied"] | ({"attention": attention[0]} if attention else {})
            scores_BKV = self.copying(scores_BKV, source, x_BKD)
        return ops.cast(scores_BKV[..., : self.vocab_size], "float32"), held["self"]
