"""Beam search as a pure step over tensors, and four rules by which hypotheses and sources finish.

The step is that of transformers 5 (`_beam_search`); the rules are those of transformers, fairseq, GNMT as t5x has it,
and PALM as it was meant. Ties go to the lowest index. Keys and values are not reordered: a table of ancestors says in
which row's slot each earlier position of a beam lies.

State, B sources and K beams: `tokens` [B, K, T+1] and `live_score` [B, K] of the growing beams, `done_tokens`,
`done_score`, `done_length`, `done_ok` of the hypotheses, `ancestors` [B, K, T], `open` [B], `minimum` and `limit` [B].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from generation.model import Tensors, Tokens
from generation.processors import Processors
from generation.settings import Settings
from ground.tensors import Tensor, ops

State = dict[str, Tensor]
LOW = -1e9
"""The score of what does not exist; finite, as transformers has it."""


@dataclass(frozen=True)
class Candidates:
    """The best continuations of a step, all [B, C], sorted."""

    score: Tensor
    parent: Tensor
    token: Tensor
    ends: Tensor
    tokens: Tensor  # [B, C, T+1]


@dataclass(frozen=True)
class Rule:
    """How a search finishes.

    Attributes:
        width: candidates for each beam.
        penalty: (length, exponent) -> what a sum of log-probabilities is divided by.
        finish: (search, state, candidates, n) -> which candidates become hypotheses.
        best: hypotheses are kept by score; otherwise the first to come are.
        grows_on: a beam that ended stays among the beams.
        opens: (search, new state, candidates, n) -> which sources go on, apart from those at their limit.
    """

    width: int
    penalty: Callable[[Tensor, float], Tensor]
    finish: Callable[[Beams, State, Candidates, Tensor], Tensor]
    opens: Callable[[Beams, State, Candidates, Tensor], Tensor]
    best: bool = True
    grows_on: bool = False


def power(length: Tensor, exponent: float) -> Tensor:
    """Return length ** exponent."""
    return ops.power(ops.cast(length, "float32"), exponent)


def gnmt(length: Tensor, exponent: float) -> Tensor:
    """Return the length penalty of Wu et al. 2016, ((5 + length) / 6) ** exponent."""
    return ops.power((5.0 + ops.cast(length, "float32")) / 6.0, exponent)


def taken(x: Tensor, index_BC: Tensor) -> Tensor:
    """Return the rows `index` of each source: x [B, K, ...] -> [B, C, ...].

    x of two sources [[a, b], [c, d]], index [[1, 1], [0, 1]]:
        as one list [a, b, c, d], index + 2 * source [[1, 1], [2, 3]] -> [[b, b], [c, d]]
    """
    rows, tail = x.shape[1], tuple(x.shape[2:])
    first_B1 = ops.arange(ops.shape(x)[0], dtype="int32")[:, None] * rows
    flat = ops.take(ops.reshape(x, (-1, *tail)), ops.reshape(index_BC + first_B1, (-1,)), axis=0)
    return ops.reshape(flat, (-1, index_BC.shape[1], *tail))


def written(x: Tensor, place: Tensor, values: Tensor) -> Tensor:
    """Return x [B, K, T] with `values` [B, K] at `place` of the last axis; nothing changes where there is no place."""
    return ops.where(ops.arange(x.shape[-1], dtype="int32") == place, values[:, :, None], x)


def best_of(x_BKV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` greatest of K x V, sorted, and their flat index k * V + v; ties go to the lowest.

    K 2, V 3, count 2, x [[5, 1, 5], [4, 5, 0]]:
        of each row  [5, 5] at [0, 2] and [5, 4] at [1, 0]
        side by side [5, 5, 5, 4], flat indices [0, 2, 4, 3] -> [5, 5], [0, 2]
    """
    _, rows, vocab = x_BKV.shape
    own = min(count, vocab)
    value_BKC, index_BKC = ops.top_k(x_BKV, own)
    flat_BKC = index_BKC + ops.arange(rows, dtype="int32")[:, None] * vocab
    if rows == 1:
        return ops.reshape(value_BKC, (-1, own)), ops.reshape(flat_BKC, (-1, own))
    value_BC, which_BC = ops.top_k(ops.reshape(value_BKC, (-1, rows * own)), count)
    which_BC = ops.reshape(which_BC, (-1, count))
    return ops.reshape(value_BC, (-1, count)), taken(ops.reshape(flat_BKC, (-1, rows * own)), which_BC)


class Beams:
    """Beam search over K beams of every source."""

    def __init__(self, settings: Settings, tokens: Tokens, vocab_size: int) -> None:
        self.settings = settings
        self.tokens = tokens
        self.rule = RULES[settings.rule]
        self.rows = settings.num_beams
        self.length = settings.max_new_tokens
        self.processors = Processors(settings, tokens, vocab_size)

    def start(self, minimum: np.ndarray, limit: np.ndarray, keys: np.ndarray) -> State:
        """Return the state of sources with these bounds of length; `keys` are for those who draw."""
        batch, rows, length = len(limit), self.rows, self.length
        tokens = np.full((batch, rows, length + 1), self.tokens.padding, np.int32)
        tokens[:, :, 0] = self.tokens.start
        ancestors = np.full((batch, rows, length), -1, np.int32)
        ancestors[:, :, 0] = np.arange(rows)
        # Only the first beam counts at first: all are equal.
        live = np.where(np.arange(rows) == 0, 0.0, LOW).astype(np.float32)
        if self.settings.rule == "fairseq":
            minimum = np.maximum(minimum, 1)
        return {
            "tokens": tokens,
            "live_score": np.tile(live, (batch, 1)),
            "done_tokens": tokens.copy(),
            "done_score": np.full((batch, rows), LOW, np.float32),
            "done_length": np.zeros((batch, rows), np.int32),
            "done_ok": np.zeros((batch, rows), bool),
            "ancestors": ancestors,
            "open": limit > 0,
            "minimum": minimum.astype(np.int32),
            "limit": limit.astype(np.int32),
        }

    def visible(self, state: State, step: Tensor, columns: int) -> Tensor:
        """Return which slots of the cache each beam attends to at this step: boolean [B, 1, K, columns * K].

        Beams 2, ancestors of a beam [1, 0, -1], 3 columns:
            slots of positions 0, 1, 2: [(0, 1), (0, 1), (0, 1)] -> [F T, T F, F F]
        """
        ancestors_BKT = state["ancestors"][:, :, :columns]
        own = ancestors_BKT[..., None] == ops.arange(self.rows, dtype="int32")
        return ops.reshape(own, (ops.shape(own)[0], 1, self.rows, columns * self.rows))

    def advance(self, state: State, step: Tensor, scores_BKV: Tensor) -> State:
        """Return the state after one more token, from the scores of all next tokens."""
        rule, rows, n = self.rule, self.rows, step + 1
        candidates = self._candidates(state, step, scores_BKV)
        state = {**state, **self._finished(state, candidates, n)}
        ended = ops.zeros_like(candidates.ends) if rule.grows_on else candidates.ends
        live_BC = ops.where(ended, LOW, candidates.score)
        live_BK, chosen_BK = ops.top_k(live_BC, rows)
        chosen_BK = ops.reshape(chosen_BK, (-1, rows))
        parent_BK = taken(candidates.parent, chosen_BK)
        own_BK = ops.broadcast_to(ops.arange(rows, dtype="int32"), ops.shape(parent_BK))
        state |= {
            "live_score": ops.reshape(live_BK, (-1, rows)),
            "tokens": taken(candidates.tokens, chosen_BK),
            "ancestors": written(taken(state["ancestors"], parent_BK), n, own_BK),
        }
        return {**state, "open": state["open"] & rule.opens(self, state, candidates, n) & (n < state["limit"])}

    def _candidates(self, state: State, step: Tensor, scores_BKV: Tensor) -> Candidates:
        log_probs = ops.log_softmax(ops.cast(scores_BKV, "float32"), axis=-1)
        log_probs = self.processors(log_probs, state["tokens"], step, state["minimum"], state["limit"])
        vocab, width = scores_BKV.shape[2], self.rule.width * self.rows
        score, flat = best_of(log_probs + state["live_score"][:, :, None], min(width, self.rows * vocab - 1))
        parent, token = flat // vocab, flat % vocab
        ends = (token == self.tokens.end) | (step + 1 >= state["limit"])[:, None]
        tokens = written(taken(state["tokens"], parent), step + 1, token)
        return Candidates(score, parent, token, ends, tokens)

    def _finished(self, state: State, candidates: Candidates, n: Tensor) -> State:
        """Merge the stored hypotheses, which come first, with the candidates that finish; keep K."""
        accepted = self.rule.finish(self, state, candidates, n) & state["open"][:, None]
        value = candidates.score / self.rule.penalty(n, self.settings.length_penalty)
        score = ops.concatenate([state["done_score"], ops.where(accepted, value, LOW)], axis=1)
        ok = ops.concatenate([state["done_ok"], accepted], axis=1)
        order = score if self.rule.best else ops.cast(ok, "float32")
        _, kept = ops.top_k(order, self.rows)
        kept = ops.reshape(kept, (-1, self.rows))
        lengths = ops.broadcast_to(ops.cast(n, "int32"), ops.shape(candidates.parent))
        return {
            "done_score": taken(score, kept),
            "done_ok": taken(ok, kept),
            "done_tokens": taken(ops.concatenate([state["done_tokens"], candidates.tokens], axis=1), kept),
            "done_length": taken(ops.concatenate([state["done_length"], lengths], axis=1), kept),
        }

    def hypotheses(self, state: Tensors) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return tokens [B, K, T] without the start token, lengths and scores [B, K], best first; length 0: none."""
        host = {name: np.asarray(state[name]) for name in ("done_tokens", "done_score", "done_length", "done_ok")}
        order = np.argsort(-host["done_score"], axis=1, kind="stable")
        lengths = np.where(host["done_ok"], host["done_length"], 0)
        tokens = np.take_along_axis(host["done_tokens"], order[:, :, None], axis=1)[:, :, 1:]
        return tokens, np.take_along_axis(lengths, order, 1), np.take_along_axis(host["done_score"], order, 1)

    def growing(self, state: Tensors) -> tuple[np.ndarray, np.ndarray]:
        """Return the best text so far of each source: tokens [B, T] and how many of them are final, int [B]."""
        done, tokens = np.asarray(state["done_ok"]).any(1), np.asarray(state["tokens"])[:, 0, 1:]
        best = np.asarray(state["done_score"]).argmax(1)
        done_tokens = np.take_along_axis(np.asarray(state["done_tokens"]), best[:, None, None], 1)[:, 0, 1:]
        closed = ~np.asarray(state["open"]) & done
        return np.where(closed[:, None], done_tokens, tokens), closed


def among_the_first(search: Beams, candidates: Candidates) -> Tensor:
    """Return which candidates are among the first K; the others only fill the beam up."""
    return ops.arange(candidates.parent.shape[1]) < search.rows


# -- the four rules: which candidates finish, which sources go on ------------------------------------------------------


def _transformers_finish(search: Beams, state: State, candidates: Candidates, n: Tensor) -> Tensor:
    return candidates.ends & among_the_first(search, candidates)


def _transformers_opens(search: Beams, state: State, candidates: Candidates, n: Tensor) -> Tensor:
    exponent, early = search.settings.length_penalty, search.settings.early_stopping
    length = state["limit"] if early == "never" and exponent > 0 else n
    best_B = state["live_score"][:, 0] / power(length, exponent)
    worst_B = ops.min(state["done_score"], axis=1)
    full_B = ops.all(state["done_ok"], axis=1)
    # An empty place has the score LOW, which the worst then is.
    return (best_B > worst_B) & ~full_B if early is True else best_B > worst_B


def _fairseq_finish(search: Beams, state: State, candidates: Candidates, n: Tensor) -> Tensor:
    return candidates.ends & (candidates.score > LOW) & among_the_first(search, candidates)


def _fairseq_opens(search: Beams, state: State, candidates: Candidates, n: Tensor) -> Tensor:
    return ~ops.all(state["done_ok"], axis=1)


def _gnmt_finish(search: Beams, state: State, candidates: Candidates, n: Tensor) -> Tensor:
    return candidates.ends


def _gnmt_opens(search: Beams, state: State, candidates: Candidates, n: Tensor) -> Tensor:
    best_B = state["live_score"][:, 0] / gnmt(state["limit"], search.settings.length_penalty)
    return ops.min(state["done_score"], axis=1) <= best_B


def _palm_finish(search: Beams, state: State, candidates: Candidates, n: Tensor) -> Tensor:
    return candidates.ends | candidates.ends[:, :1]


def _palm_opens(search: Beams, state: State, candidates: Candidates, n: Tensor) -> Tensor:
    return ~candidates.ends[:, 0]


RULES: dict[str, Rule] = {
    "transformers": Rule(2, power, _transformers_finish, _transformers_opens),
    "fairseq": Rule(2, power, _fairseq_finish, _fairseq_opens, best=False),
    "gnmt": Rule(2, gnmt, _gnmt_finish, _gnmt_opens),
    "palm": Rule(1, gnmt, _palm_finish, _palm_opens, grows_on=True),
}
