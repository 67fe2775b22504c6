"""Sources as features -> texts: a search over an encoder-decoder between a tokenizer's two ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from generation.chunked import ChunkedGenerator
from generation.generator import Generator, Hypothesis, Listener
from generation.language_model import Generative
from generation.model import Features, Tokens
from generation.settings import Preset, Settings

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer
    from modeling import LanguageModel

_NO_TEXT = -1e9
HEARD_STEPS = 2
"""Tokens that are generated between two looks, where somebody listens."""


class TextGenerator:
    """Generates texts; compiled programs are kept between calls.

    Args:
        model: with a decoder; or an export, whose `decodable(tokens)` is asked.
        tokenizer: of both sides.
        preset: how text is searched for, and whether in chunks.
        batch_size: most sources side by side.
        max_seq_length: most tokens of a source, specials counted.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        preset: Preset,
        *,
        batch_size: int,
        max_seq_length: int,
    ) -> None:
        template = tokenizer.template
        self._tokenizer, self._max_seq_length = tokenizer, max_seq_length
        self._first, self._last = template.first, template.last
        tokens = Tokens(start=template.first[-1], end=template.last[0], padding=tokenizer.pad_id)
        # [CLS], [MASK] and the like are no text; neither is [UNK], which says nothing.
        no_text = sorted(tokenizer.special_ids - {tokens.end})
        settings = preset.settings.changed(suppress_tokens=tuple(no_text))
        # What was exported brings its own way to be asked.
        decodable = getattr(model, "decodable", lambda tokens: Generative(model, tokens))(tokens)
        self._in_chunks, self._generator = None, None
        if preset.chunks is None:
            self._generator = Generator(decodable, settings, batch_size=batch_size)
        else:
            room = max_seq_length - len(self._first) - len(self._last)
            self._in_chunks = ChunkedGenerator(
                decodable, settings, preset.chunks, self._features, room, batch_size=batch_size
            )

    @property
    def settings(self) -> Settings | None:
        """How text is searched for; None where it is written in chunks."""
        return None if self._generator is None else self._generator.settings

    @property
    def new_tokens(self) -> tuple[int, int] | None:
        """Least and most that the limit of a call may be; None where text is written in chunks, which have no limit."""
        settings = self.settings
        return None if settings is None else (settings.min_new_tokens + 1, settings.max_new_tokens)

    def __call__(
        self,
        features: Features,
        listener: Callable[[int, str], None] | None = None,
        limits: Sequence[int | None] | None = None,
    ) -> list[list[dict[str, Any]]]:
        """Return the hypotheses of every source, best first, each `{"text", "score"}`; never none.

        `listener` is called with the number of a source and its best text so far, every `HEARD_STEPS` tokens; `limits`
        are the most tokens of each source's text, within `new_tokens`; None is the settings' own.
        """
        heard = None if listener is None else self._heard_by(listener)
        if self._generator is not None:
            most = self._generator.settings.max_new_tokens
            limit = None if limits is None else np.array([most if each is None else each for each in limits])
            found = self._generator(features, heard, limit=limit, segment=HEARD_STEPS if heard else None)
        else:
            assert self._in_chunks is not None
            found = self._in_chunks(self._texts(features), heard)
        nothing = Hypothesis((), _NO_TEXT, _NO_TEXT, ended=False)
        return [[self._described(each) for each in hypotheses or [nothing]] for hypotheses in found]

    def _heard_by(self, listener: Callable[[int, str], None]) -> Listener:
        return lambda place, tokens, final: listener(place, self._tokenizer.decode(tokens.tolist()))

    def _described(self, hypothesis: Hypothesis) -> dict[str, Any]:
        return {"text": self._tokenizer.decode(hypothesis.tokens), "score": round(hypothesis.score, 6)}

    def _texts(self, features: Features) -> list[list[int]]:
        """Return the ids of each source without the specials at its ends."""
        ids, lengths = np.asarray(features["input_ids"]), np.asarray(features["input_mask"]).sum(axis=1)
        begin, end = len(self._first), len(self._last)
        return [row[begin : length - end].tolist() for row, length in zip(ids, lengths, strict=True)]

    def _features(self, texts: Sequence[Sequence[int]]) -> Features:
        """Return the features of texts as ids, int32 [N, S]."""
        rows = [[*self._first, *text, *self._last] for text in texts]
        mask = (np.arange(max(map(len, rows))) < np.array([[len(row)] for row in rows])).astype(np.int32)
        ids = np.full_like(mask, self._tokenizer.pad_id)
        ids[mask == 1] = np.concatenate(rows)
        return {"input_ids": ids, "input_mask": mask, "segment_ids": np.zeros_like(mask)}
