"""What changes the scores of the next token before a search selects one: transformers' definitions, in its order.

Beam search applies them to log-probabilities, greedy search and sampling to logits. A process is part of the graph only
where the settings ask for it; every shape is static.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from absl.app import UsageError

from generation.model import Tokens
from generation.settings import Settings
from ground.tensors import Tensor, ops

NOTHING = -float("inf")


class Processors:
    """Scores [B, K, V] -> scores, given what each row has generated so far."""

    def __init__(self, settings: Settings, tokens: Tokens, vocab_size: int) -> None:
        self.settings = settings
        self.tokens = tokens
        self.vocab_size = vocab_size
        suppressed = {*settings.suppress_tokens, *([tokens.padding] if settings.rule == "fairseq" else [])}
        named = {
            "suppress_tokens": settings.suppress_tokens,
            "forced_bos_token_id": (settings.forced_bos_token_id or 0,),
            "forced_eos_token_id": (settings.forced_eos_token_id or 0,),
        }
        for name, ids in named.items():
            if max(ids, default=0) >= vocab_size:
                raise UsageError(f"{name} has {max(ids)}; expected an id below the vocabulary's size, {vocab_size}")
        self.suppressed = sorted(suppressed)

    def __call__(
        self, scores_BKV: Tensor, history_BKL: Tensor, step: Tensor, minimum_B: Tensor, limit_B: Tensor
    ) -> Tensor:
        """Apply what the settings ask for.

        Args:
            scores_BKV: logits or log-probabilities of the next token, float32.
            history_BKL: start token and generated tokens; the first `step + 1` count.
            step: how many tokens were generated, a scalar.
            minimum_B: least tokens before the end token; not read where the settings ask for none.
            limit_B: most tokens.
        """
        settings, end = self.settings, self.tokens.end
        if settings.repetition_penalty != 1.0:
            seen = present(history_BKL, ops.arange(history_BKL.shape[2]) <= step, self.vocab_size)
            scores_BKV = ops.where(seen, lowered(scores_BKV, settings.repetition_penalty), scores_BKV)
        if settings.no_repeat_ngram_size:
            banned = repeating(history_BKL, step + 1, settings.no_repeat_ngram_size, self.vocab_size)
            scores_BKV = ops.where(banned, NOTHING, scores_BKV)
        if settings.min_new_tokens or settings.rule == "fairseq":
            too_short_B = step < minimum_B
            scores_BKV = ops.where(too_short_B[:, None, None] & self._is([end]), NOTHING, scores_BKV)
        if settings.forced_bos_token_id is not None:
            forced = ops.where(self._is([settings.forced_bos_token_id]), 0.0, NOTHING)
            scores_BKV = ops.where(step == 0, forced, scores_BKV)
        last_B11 = (step == limit_B - 1)[:, None, None]
        if settings.forced_eos_token_id is not None:
            forced = ops.where(self._is([settings.forced_eos_token_id]), 0.0, NOTHING)
            scores_BKV = ops.where(last_B11, forced, scores_BKV)
        if settings.rule == "fairseq":
            # The end token keeps its own probability.
            scores_BKV = ops.where(last_B11 & ~self._is([end]), NOTHING, scores_BKV)
        if self.suppressed:
            # A sum is several times as fast as a choice, over so many scores.
            scores_BKV = scores_BKV + np.where(self._is(self.suppressed), NOTHING, 0.0).astype(np.float32)
        return scores_BKV

    def forced(self, step: Tensor, limit_B: Tensor) -> Tensor:
        """Return whether the next token of a source is forced and costs nothing; boolean [B]."""
        first = (step == 0) if self.settings.forced_bos_token_id is not None else False
        last_B = limit_B < 0
        if self.settings.forced_eos_token_id is not None:
            last_B = step == limit_B - 1
        return ops.logical_or(first, last_B)

    def _is(self, ids: Sequence[int]) -> np.ndarray:
        return np.isin(np.arange(self.vocab_size), list(ids))[None, None]


def lowered(scores: Tensor, penalty: float) -> Tensor:
    """Divide positive scores by the penalty and multiply the others.

    [2, -1], penalty 1.5 -> [1.333, -1.5]
    """
    return ops.where(scores < 0, scores * penalty, scores / penalty)


def present(tokens_BKL: Tensor, counts: Tensor, vocab_size: int) -> Tensor:
    """Return which words of the vocabulary are among the tokens that count; boolean [B, K, V].

    tokens [3, 1, 3], counts [1, 1, 0], 5 words:
        one cell (row, token) for each -> added into zeros [5] -> [0, 1, 0, 1, 0] -> above 0
    """
    _, rows, length = tokens_BKL.shape
    flat_ML = ops.reshape(tokens_BKL, (-1, length))
    counts_ML = ops.broadcast_to(ops.reshape(ops.cast(counts, "float32"), (-1, length)), ops.shape(flat_ML))
    row_ML = ops.arange(ops.shape(flat_ML)[0], dtype="int32")[:, None] + ops.zeros_like(flat_ML)
    cells = ops.reshape(ops.stack([row_ML, flat_ML], axis=-1), (-1, 2))
    found_MV = ops.scatter(cells, ops.reshape(counts_ML, (-1,)), (ops.shape(flat_ML)[0], vocab_size))
    return ops.reshape(found_MV > 0, (-1, rows, vocab_size))


def repeating(tokens_BKL: Tensor, length: Tensor, size: int, vocab_size: int) -> Tensor:
    """Return the words that would complete an n-gram of `size` which the row already has; boolean [B, K, V].

    tokens [1, 3, 4, 3, 0], length 4, size 2:
        the last size - 1 tokens        [3]
        windows that equal them         at 1 and 3, of [1] [3] [4] [3]
        the tokens behind these         4, and one beyond the length, which does not count
        -> word 4
    """
    whole = tokens_BKL.shape[2]
    windows = whole - size + 1
    batch, rows = ops.shape(tokens_BKL)[0], tokens_BKL.shape[1]
    if windows < 1:
        return ops.zeros((batch, rows, vocab_size), "bool")
    start = ops.maximum(ops.cast(length, "int32") - size + 1, 0)
    hit = ops.broadcast_to(ops.arange(windows, dtype="int32") + size - 1 < length, (batch, rows, windows))
    for offset in range(size - 1):
        last_BK1 = ops.take(tokens_BKL, ops.reshape(start + offset, (1,)), axis=2)
        hit = hit & (tokens_BKL[:, :, offset : offset + windows] == last_BK1)
    return present(tokens_BKL[:, :, size - 1 :], hit, vocab_size)
