"""Long text in chunks, as PLUG writes it: what was written joins the source, which is encoded anew for the next chunk.

Differs from the released loop in that the end token is not drawn before its time, instead of being drawn and dropped,
and that the source keeps its first token when its tail alone fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl.app import UsageError

from generation.generator import Generator, Hypothesis, Listener
from generation.model import Decodable, Features
from generation.search import RULES
from generation.settings import Chunks, Settings

Encode = Callable[[Sequence[Sequence[int]]], Features]
"""Texts as ids without special tokens -> the model's features, special tokens put around."""


class ChunkedGenerator:
    """Texts as ids -> one long continuation of each.

    Args:
        model: what generates.
        settings: how each chunk is searched; `max_new_tokens` is the length of the whole text.
        chunks: how the text is divided.
        encode: makes the features of a chunk.
        max_source: most tokens of a source without special tokens; of more the last are read.
        **further: arguments of `Generator`.

    Raises:
        UsageError: settings that have no meaning for a text in chunks.
    """

    def __init__(
        self,
        model: Decodable,
        settings: Settings,
        chunks: Chunks,
        encode: Encode,
        max_source: int,
        **further: Any,
    ) -> None:
        if settings.num_return_sequences > 1 or settings.forced_eos_token_id is not None:
            raise UsageError(
                "a text in chunks is one sequence without a forced end: leave num_return_sequences and "
                "forced_eos_token_id out"
            )
        self.settings = settings
        self.chunks = chunks
        self.encode = encode
        self.max_source = max_source
        length = min(chunks.chunk_tokens, settings.max_new_tokens)
        # Each chunk is told its own least length; that there may be one is part of the program.
        within = settings.changed(max_new_tokens=max(2, length), min_new_tokens=1)
        self.generator = Generator(model, within, **further)

    def __call__(self, texts: Sequence[Sequence[int]], listener: Listener | None = None) -> list[list[Hypothesis]]:
        """Return one hypothesis of every text, its score over all chunks; of an empty text none.

        Wanted 10 tokens in chunks of 4, at least 80 %: chunks of at most 4, 4 and 2 tokens, in which the end token is
        allowed after 8, 4 and 0 tokens: in the third alone.
        """
        wanted = self.settings.max_new_tokens
        least = max(self.settings.min_new_tokens, math.floor(self.chunks.min_fraction * wanted))
        written: list[list[int]] = [[] for _ in texts]
        sums, ended = [0.0] * len(texts), [not text for text in texts]
        while open_ := [i for i, done in enumerate(ended) if not done]:
            sources = [[*texts[i], *written[i]][-self.max_source :] for i in open_]
            limit = np.array([min(self.chunks.chunk_tokens, wanted - len(written[i])) for i in open_])
            minimum = np.array([max(0, least - len(written[i])) for i in open_])
            told = None if listener is None else self._whole(listener, open_, [list(written[i]) for i in open_])
            found = self.generator(self.encode(sources), told, minimum=minimum, limit=limit)
            for i, (hypothesis, *_) in zip(open_, found, strict=True):
                written[i] += hypothesis.tokens
                sums[i] += hypothesis.log_probability
                ended[i] = hypothesis.ended or len(written[i]) >= wanted
        penalty = RULES[self.settings.rule].penalty
        exponent = self.settings.length_penalty
        return [
            [Hypothesis(tuple(ids), total / float(penalty(max(1, len(ids)), exponent)), total, len(ids) < wanted)]
            if text
            else []
            for text, ids, total in zip(texts, written, sums, strict=True)
        ]

    def _whole(self, listener: Listener, sources: Sequence[int], before: Sequence[Sequence[int]]) -> Listener:
        def tell(place: int, tokens: np.ndarray, final: bool) -> None:
            text = np.concatenate([np.asarray(before[place], np.int32), tokens])
            # Whether the text goes on is known when the chunk has ended.
            listener(sources[place], text, final and len(tokens) + len(before[place]) >= self.settings.max_new_tokens)

        return tell
