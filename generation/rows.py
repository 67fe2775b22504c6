"""Greedy search and sampling: K independent rows of every source, each taking one token a step.

A draw depends on the seed, the source's tokens, the row, the position and the token alone, so that a source gives the
same text in every batch. It adds Gumbel noise to the scores and takes the greatest (Gumbel 1954; Maddison et al. 2014).

State: `tokens` [B, K, T+1], `score`, `length`, `ok` [B, K], `open` [B], `minimum`, `limit` [B], `keys` uint32 [B, 2].
"""

from __future__ import annotations

import numpy as np

from generation.model import Tensors, Tokens
from generation.processors import NOTHING, Processors
from generation.search import RULES, State, written
from generation.settings import Settings
from ground.keys import finalised, words
from ground.tensors import Tensor, ops


class Rows:
    """Greedy search over one row, or K draws, of every source."""

    def __init__(self, settings: Settings, tokens: Tokens, vocab_size: int) -> None:
        self.settings = settings
        self.tokens = tokens
        self.rows = settings.rows
        self.length = settings.max_new_tokens
        self.processors = Processors(settings, tokens, vocab_size)

    def start(self, minimum: np.ndarray, limit: np.ndarray, keys: np.ndarray) -> State:
        """Return the state of sources with these bounds of length and these random keys, uint32 [B, 2]."""
        batch, rows = len(limit), self.rows
        tokens = np.full((batch, rows, self.length + 1), self.tokens.padding, np.int32)
        tokens[:, :, 0] = self.tokens.start
        if self.settings.rule == "fairseq":
            minimum = np.maximum(minimum, 1)
        state = {
            "tokens": tokens,
            "score": np.zeros((batch, rows), np.float32),
            "length": np.zeros((batch, rows), np.int32),
            "ok": np.tile(limit[:, None] <= 0, (1, rows)),
            "open": limit > 0,
            "minimum": minimum.astype(np.int32),
            "limit": limit.astype(np.int32),
        }
        return state | ({"keys": keys} if self.settings.do_sample else {})

    def visible(self, state: State, step: Tensor, columns: int) -> Tensor:
        """Return which slots of the cache each row attends to: boolean [1, 1, K, columns * K].

        2 rows, step 0, 2 columns: slots [(0, 1), (0, 1)] -> row 0 [T F, F F], row 1 [F T, F F]
        """
        slots = ops.arange(columns * self.rows, dtype="int32")
        own = slots % self.rows == ops.arange(self.rows, dtype="int32")[:, None]
        return (own & (slots // self.rows <= step))[None, None]

    def advance(self, state: State, step: Tensor, scores_BKV: Tensor) -> State:
        """Return the state after one more token."""
        scores_BKV = ops.cast(scores_BKV, "float32")
        processed = self.processors(scores_BKV, state["tokens"], step, state["minimum"], state["limit"])
        if self.settings.do_sample:
            token_BK = self._drawn(processed, state["keys"], step)
        else:
            token_BK = ops.cast(ops.argmax(processed, axis=-1), "int32")
        # The model's own log-probability, whatever was done to the scores.
        chosen_BK = ops.squeeze(ops.take_along_axis(scores_BKV, token_BK[:, :, None], axis=2), axis=2)
        chosen_BK = chosen_BK - ops.logsumexp(scores_BKV, axis=-1)
        free = self.processors.forced(step, state["limit"])[:, None] | state["ok"]
        n, was = step + 1, state["ok"]
        ok = was | (token_BK == self.tokens.end) | (n >= state["limit"])[:, None]
        return {
            **state,
            "tokens": written(state["tokens"], n, ops.where(was, self.tokens.padding, token_BK)),
            "score": state["score"] + ops.where(free, 0.0, chosen_BK),
            "length": ops.where(was, state["length"], n),
            "ok": ok,
            "open": ~ops.all(ok, axis=1),
        }

    def _drawn(self, scores_BKV: Tensor, keys_B2: Tensor, step: Tensor) -> Tensor:
        """Draw a token of each row: temperature, then top-k, then top-p."""
        settings, vocab = self.settings, scores_BKV.shape[2]
        scores = scores_BKV / settings.temperature
        kept = min(settings.top_k or vocab, vocab)
        if kept == vocab and settings.top_p == 1.0:
            noise = gumbel(keys_B2, step, self.rows, ops.arange(vocab, dtype="int32")[None, None])
            return ops.cast(ops.argmax(scores + noise, axis=-1), "int32")
        scores_BKC, ids_BKC = ops.top_k(scores, kept)
        if settings.top_p < 1.0:
            share = ops.softmax(scores_BKC, axis=-1)
            before = ops.cumsum(share, axis=-1) - share
            first = ops.arange(kept) == 0
            scores_BKC = ops.where((before < settings.top_p) | first, scores_BKC, NOTHING)
        best = ops.argmax(scores_BKC + gumbel(keys_B2, step, self.rows, ids_BKC), axis=-1)
        return ops.squeeze(ops.take_along_axis(ops.cast(ids_BKC, "int32"), best[:, :, None], axis=2), axis=2)

    def hypotheses(self, state: Tensors) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return tokens [B, K, T] without the start token, lengths and scores [B, K], best first."""
        penalty = RULES[self.settings.rule].penalty
        lengths = np.asarray(state["length"])
        exponent = self.settings.length_penalty
        scores = np.asarray(state["score"]) / np.asarray(penalty(np.maximum(lengths, 1), exponent))
        order = np.argsort(-scores, axis=1, kind="stable")
        tokens = np.take_along_axis(np.asarray(state["tokens"]), order[:, :, None], axis=1)[:, :, 1:]
        return tokens, np.take_along_axis(lengths, order, 1), np.take_along_axis(scores, order, 1)

    def growing(self, state: Tensors) -> tuple[np.ndarray, np.ndarray]:
        """Return the text so far of each source's first row: tokens [B, T] and whether it is final, boolean [B]."""
        return np.asarray(state["tokens"])[:, 0, 1:], np.asarray(state["ok"])[:, 0]


def gumbel(keys_B2: Tensor, step: Tensor, rows: int, ids_BKC: Tensor) -> Tensor:
    """Return noise of the standard Gumbel distribution, float32 [B, K, C], a function of its arguments by element.

    One token of one row at step 5:
        key [a, b] -> mixed with the row and the step, one 32-bit word -> mixed with the token's id, another
        -> its upper 23 bits as u in (0, 1) -> -log(-log(u))
    """
    key_B1 = finalised(keys_B2[:, :1] + words(0x9E3779B9) * ops.cast(step, "uint32"))
    row_K = ops.arange(rows, dtype="int32")
    key_BK = finalised(ops.bitwise_xor(key_B1, keys_B2[:, 1:]) + words(0x85EBCA77) * ops.cast(row_K, "uint32"))
    bits = finalised(key_BK[:, :, None] + words(0xC2B2AE3D) * ops.cast(ids_BKC, "uint32"))
    u = (ops.cast(ops.bitwise_right_shift(bits, words(9)), "float32") + 0.5) * 2.0**-23
    return -ops.log(-ops.log(u))
