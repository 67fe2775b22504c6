"""Shuffled words of StructBERT's word structural objective (Wang et al. 2020, section 2.2.1), for a batch of masked
examples at once.

The paper does not say which total a share of trigrams refers to, nor whether trigrams may overlap or keep their order;
every such choice is an attribute here. AliceMind's released sampler (sofa's data_plug.py) decides differently from the
paper and is the preset "released", without its loss of tokens at the limit of predictions.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data.randomness import random_below, random_bits, stream_number

MAX_TOKENS = 6

_COUNT = stream_number("how many windows")
_WINDOW = stream_number("which windows")
_PERMUTATION = stream_number("order in a window")


@dataclass(frozen=True)
class WordOrder:
    """How many windows of neighbouring tokens are shuffled, and which.

    Attributes:
        rate: share of the windows that may be shuffled, at any start, that are; one of n windows of three tokens then
            moves about 3 * rate of all tokens. Fractions of a window are drawn, so that the share is met on average.
        tokens: of a window (the paper's K), at most MAX_TOKENS.
        windows: "unmasked" takes windows without a masked or special token, which therefore lie in one segment; "any"
            all that begin with a token that is not special.
        overlap: windows may share tokens, and are then shuffled one after the other.
        identity: the permutation may be the one that changes nothing.
        labels: "all" predicts every token of a window, "changed" those that their first window changed; masked tokens
            have a label of their own already.
    """

    rate: float = 0.05
    tokens: int = 3
    windows: str = "unmasked"
    overlap: bool = False
    identity: bool = True
    labels: str = "all"

    def num_slots(self, max_seq_length: int) -> int:
        """Return the width of the label arrays: no example of `max_seq_length` tokens needs more."""
        return min(max_seq_length, self.tokens * int(np.ceil(self.rate * max(0, max_seq_length - self.tokens))))

    @cached_property
    def permutations(self) -> np.ndarray:
        """The orders that may be drawn; int64 [n, tokens]."""
        return np.asarray(list(itertools.permutations(range(self.tokens)))[0 if self.identity else 1 :])


PRESETS = {
    "paper": WordOrder(),
    "released": WordOrder(rate=0.1, windows="any", overlap=True, labels="changed"),
}


def shuffle_words(
    shown_ids_NL: np.ndarray,
    input_ids_NL: np.ndarray,
    hidden_NL: np.ndarray,
    lengths_N: np.ndarray,
    keys_N: np.ndarray,
    word_order: WordOrder,
    special_NL: np.ndarray,
) -> dict[str, np.ndarray]:
    """Shuffle windows of N masked examples; row n depends on its own arguments and keys_N[n] alone.

    Example:
        input_ids  [2 10 11 12 13 14 15 3]     [CLS] 2, [SEP] 3; position 5 was masked; windows of 3, "unmasked"
        starts     [0  1  1  0  0  0  0 0]     1:4 and 2:5 hold neither a special nor a masked token
        wanted     1                           rate * 2, its fraction rounded up or down by a draw
        taken      start 1, order (2 0 1)      both drawn by the key of the row
        shown      [2 12 10 11 13  4 15 3]
        labels     positions [1 2 3], ids [10 11 12], weights [1 1 1]

    Args:
        shown_ids_NL: int32 ids after masking.
        input_ids_NL: int32 ids before it, with their specials, zero padded.
        hidden_NL: bool, positions that masking predicts.
        lengths_N: tokens per row, without padding.
        keys_N: uint64 from `data.randomness.keys`.
        word_order: amounts and choices.
        special_NL: bool, tokens that are special.

    Returns:
        `input_ids` int32 [N, L]; `word_order_positions`, `word_order_ids` (the ids before masking) int32 [N, Q]
        ascending and zero padded; `word_order_weights` float32 [N, Q]; Q is `word_order.num_slots(L)`.
    """
    N, L = input_ids_NL.shape
    K = word_order.tokens
    starts_NL = _possible_starts(hidden_NL, lengths_N, word_order, special_NL)
    num_starts_N = starts_NL.sum(axis=1)
    wanted_N = np.floor(word_order.rate * num_starts_N + random_bits(keys_N, 1, _COUNT)[:, 0] / 2.0**32).astype(
        np.int64
    )
    # Random bits and the position are packed in one integer: one sort shuffles the starts of every row. Positions that
    # are no starts become the largest integer and sort last.
    position_mask = np.uint32(2 ** (L - 1).bit_length() - 1)
    order_NL = random_bits(keys_N, L, _WINDOW)
    order_NL &= ~position_mask
    order_NL |= np.arange(L, dtype=np.uint32)
    order_NL |= starts_NL.astype(np.uint32) - np.uint32(1)
    order_NL.sort(axis=1)
    # Indices are flat from here on, because NumPy gathers several times faster by them than by rows and columns.
    in_window = np.zeros(N * L, bool)
    taken_N = np.zeros(N, np.int64)
    steps: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    active, step = np.flatnonzero(wanted_N), 0
    while len(active):
        row, start = active, active * L + (order_NL.take(active * L + step) & position_mask)
        if not word_order.overlap:
            # All windows have one size, and so two of them meet where one holds the first or last token of the other.
            free = ~(in_window.take(start) | in_window.take(start + (K - 1)))
            row, start = row[free], start[free]
            for i in range(K):
                in_window[start + i] = True
        number = taken_N.take(row)
        steps.append((row, start, number))
        taken_N[row] = number + 1
        step += 1
        active = active[(taken_N.take(active) < wanted_N.take(active)) & (num_starts_N.take(active) > step)]
    if steps and not word_order.overlap:
        # Disjoint windows can be shuffled all at once.
        rows, starts, numbers = (np.concatenate(parts) for parts in zip(*steps, strict=True))
        steps = [(rows, starts, numbers)]

    drawn = random_bits(keys_N, int(wanted_N.max(initial=0)), _PERMUTATION)
    ids_NL, covered_NL, labelled_NL = shown_ids_NL.copy(), hidden_NL.copy(), np.zeros((N, L), bool)
    # No token of such windows is masked or in another window: the bookkeeping below would find every token new.
    unlabelled = word_order.windows == "unmasked" and not word_order.overlap and word_order.labels == "all"
    for row, start, number in steps:
        chosen = word_order.permutations[random_below(drawn[row, number], len(word_order.permutations))]
        positions = start[:, None] + np.arange(K)
        before, after = ids_NL.take(positions), ids_NL.take(start[:, None] + chosen)
        ids_NL.ravel()[positions] = after
        if unlabelled:
            labelled_NL.ravel()[positions] = True
            continue
        uncovered = ~covered_NL.take(positions)
        wanted = uncovered if word_order.labels == "all" else uncovered & (before != after)
        labelled_NL.ravel()[positions[wanted]] = True
        covered_NL.ravel()[positions] = True

    flat = np.flatnonzero(labelled_NL)
    row = flat // L
    slot = np.arange(len(flat)) - np.searchsorted(row, np.arange(N))[row]
    Q = word_order.num_slots(L)
    positions_NQ, labels_NQ = np.zeros((N, Q), np.int32), np.zeros((N, Q), np.int32)
    weights_NQ = np.zeros((N, Q), np.float32)
    place = row * Q + slot
    positions_NQ.ravel()[place] = flat - row * L
    labels_NQ.ravel()[place] = input_ids_NL.take(flat)
    weights_NQ.ravel()[place] = 1.0
    return {
        "input_ids": ids_NL,
        "word_order_positions": positions_NQ,
        "word_order_ids": labels_NQ,
        "word_order_weights": weights_NQ,
    }


def _possible_starts(
    hidden_NL: np.ndarray, lengths_N: np.ndarray, word_order: WordOrder, special_NL: np.ndarray
) -> np.ndarray:
    """Mark where a window may begin; bool [N, L]."""
    L, K = hidden_NL.shape[1], word_order.tokens
    fits_NL = np.arange(L) <= lengths_N[:, None] - K
    if word_order.windows == "any":
        return ~special_NL & fits_NL
    ordinary_NL = ~(special_NL | hidden_NL)
    starts_NL = ordinary_NL & fits_NL
    for i in range(1, K):
        starts_NL[:, : L - i] &= ordinary_NL[:, i:]
    return starts_NL
