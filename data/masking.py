"""Hidden tokens of masked language modelling, for a batch of examples at once: BERT (Devlin et al. 2019, section 3.1)
with whole words, and n-grams of words (ALBERT, Lan et al. 2020, section 4.1).

Unlike albert_zh, labels are the input ids, words of any length stay whole, a word never reaches across [SEP], and
random replacements come from real tokens only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data.randomness import keys, random_below, random_bits, stream_number
from ground.ragged import span_indices

MASK_SHARE = 0.8
KEEP_SHARE = 0.1

_ORDER = stream_number("word order")
_NGRAM = stream_number("n-gram length")
_ACTION = stream_number("mask, keep or replace")
_PERMUTATION = stream_number("permutation")
_REPLACEMENT = stream_number("replacement")


@dataclass(frozen=True)
class Masking:
    """How many tokens are hidden, and in what pieces.

    Attributes:
        rate: share of an example's tokens, specials counted, that is predicted; 0 hides nothing.
        max_predictions: upper bound per example.
        ngram: up to how many words in a row are hidden together, n drawn with probability ~ 1/n.
        favor_shorter_ngram: False reverses the probabilities of the n.
        permute: besides, as many tokens again change places with one another and are predicted (google-research's
            do_permutation).
    """

    rate: float
    max_predictions: int
    ngram: int = 1
    favor_shorter_ngram: bool = True
    permute: bool = False

    @property
    def num_slots(self) -> int:
        """Width of the label arrays."""
        return self.max_predictions * (2 if self.permute else 1)

    def budget_tokens(self, lengths_N: np.ndarray) -> np.ndarray:
        """Return how many predictions each example of `lengths_N` tokens wants (BERT's rounding, at least one)."""
        if self.rate == 0:
            return np.zeros(len(lengths_N), np.int64)
        wanted = np.maximum(1, np.rint(lengths_N * self.rate)).astype(np.int64)
        return np.minimum(self.max_predictions, wanted)

    @cached_property
    def cumulative_ngram(self) -> np.ndarray:
        """Row m: thresholds on [0, 2**32) of n = 1 .. ngram where a run has only m words left; float64."""
        weights = 1.0 / np.arange(1, self.ngram + 1)
        if not self.favor_shorter_ngram:
            weights = weights[::-1]
        table = np.ones((self.ngram + 1, self.ngram))
        for available in range(1, self.ngram + 1):
            table[available, :available] = np.cumsum(weights[:available]) / weights[:available].sum()
        return table * 2.0**32


@dataclass(frozen=True)
class MaskVocabulary:
    """The ids that masking asks for."""

    mask_id: int
    replacement_ids: np.ndarray  # int32, random replacements are drawn from them
    special: np.ndarray  # bool [V], ids that are never hidden
    # int32 [V], label of a token inside a word; None: the token's own id. albert_zh's labels need '##X' for X there.
    inside_labels: np.ndarray | None = None


def mask_examples(
    input_ids_NL: np.ndarray,
    word_starts_NL: np.ndarray,
    lengths_N: np.ndarray,
    keys_N: np.ndarray,
    masking: Masking,
    vocabulary: MaskVocabulary,
) -> dict[str, np.ndarray]:
    """Hide tokens of N examples; row n depends on its own arguments and keys_N[n] alone.

    Words are taken in random order, each whole or not at all, as long as they fit into the rest of the budget. Of
    the tokens taken 80 % become [MASK], 10 % stay, 10 % become a random token, each token by itself. A word that holds
    a special id, such as [UNK], is left alone.

    Args:
        input_ids_NL: int32 token ids with their specials, zero padded.
        word_starts_NL: bool, first token of a word; specials have to be words of their own ([CLS] first in every row).
        lengths_N: tokens per row, without padding.
        keys_N: uint64 from `data.randomness.keys`.
        masking: amounts.
        vocabulary: ids.

    Returns:
        `input_ids` int32 [N, L]; `masked_lm_positions`, `masked_lm_ids` int32 [N, P] ascending and zero padded;
        `masked_lm_weights` float32 [N, P]; P is `masking.num_slots`.
    """
    special_NL = vocabulary.special.take(input_ids_NL)
    return hide_tokens(input_ids_NL, word_starts_NL, lengths_N, keys_N, masking, vocabulary, special_NL)[0]


def hide_tokens(
    input_ids_NL: np.ndarray,
    word_starts_NL: np.ndarray,
    lengths_N: np.ndarray,
    keys_N: np.ndarray,
    masking: Masking,
    vocabulary: MaskVocabulary,
    special_NL: np.ndarray,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Hide tokens like `mask_examples`, told which tokens are special.

    Example:
        input_ids [2 10 11 12 3 0]     [CLS] 2, [SEP] 3, [MASK] 4; word starts [1 1 0 1 1 0]; a budget of 2
        chosen    [0  1  1  0 0 0]     the word 10 11, whole
        input_ids [2  4 11 12 3 0]     10 became [MASK], 11 was among the 10 % that stay
        labels    positions [1 2 0], ids [10 11 0], weights [1 1 0]      ascending, zero padded to P = 3

    Returns:
        The features of `mask_examples`; and the positions that are predicted, bool [N, L].
    """
    N, L = input_ids_NL.shape
    hidden_NL = _choose_words(special_NL, word_starts_NL, lengths_N, keys_N, masking)
    masked_ids_NL = input_ids_NL.copy()
    _hide(masked_ids_NL, hidden_NL, keys_N, vocabulary)
    predicted_NL = hidden_NL
    if masking.permute:
        other_keys_N = keys(keys_N, _PERMUTATION)
        moved_NL = _choose_words(special_NL | hidden_NL, word_starts_NL, lengths_N, other_keys_N, masking)
        _permute(masked_ids_NL, moved_NL, other_keys_N)
        predicted_NL = hidden_NL | moved_NL

    flat = np.flatnonzero(predicted_NL)
    row, slot = _rows_and_slots(flat, N, L)
    P = masking.num_slots
    positions_NP, labels_NP = np.zeros((N, P), np.int32), np.zeros((N, P), np.int32)
    weights_NP = np.zeros((N, P), np.float32)
    originals = input_ids_NL.ravel()[flat]
    positions_NP[row, slot] = flat % L
    weights_NP[row, slot] = 1.0
    if vocabulary.inside_labels is None:
        labels_NP[row, slot] = originals
    else:
        inside = ~word_starts_NL.ravel()[flat]
        labels_NP[row, slot] = np.where(inside, vocabulary.inside_labels[originals], originals)

    features = {
        "input_ids": masked_ids_NL,
        "masked_lm_positions": positions_NP,
        "masked_lm_ids": labels_NP,
        "masked_lm_weights": weights_NP,
    }
    return features, predicted_NL


def _rows_and_slots(flat: np.ndarray, N: int, L: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the row of each ascending index into [N, L], and its number there: 1 2 9 of L 8 -> 0 0 1 and 0 1 0."""
    row = flat // L
    return row, np.arange(len(flat)) - np.searchsorted(row, np.arange(N))[row]


def _hide(ids_NL: np.ndarray, hidden_NL: np.ndarray, keys_N: np.ndarray, vocabulary: MaskVocabulary) -> None:
    """Replace hidden tokens in place by [MASK], the token itself, or a random one."""
    flat = np.flatnonzero(hidden_NL)
    row, slot = _rows_and_slots(flat, *hidden_NL.shape)
    width = int(slot.max(initial=-1)) + 1
    action = random_bits(keys_N, width, _ACTION)[row, slot]
    replacement = random_below(random_bits(keys_N, width, _REPLACEMENT)[row, slot], len(vocabulary.replacement_ids))
    shown = np.where(action < np.uint32(MASK_SHARE * 2**32), np.int32(vocabulary.mask_id), ids_NL.ravel()[flat])
    replaced = action >= np.uint32((MASK_SHARE + KEEP_SHARE) * 2**32)
    shown[replaced] = vocabulary.replacement_ids[replacement[replaced]]
    ids_NL.ravel()[flat] = shown


def _permute(ids_NL: np.ndarray, moved_NL: np.ndarray, keys_N: np.ndarray) -> None:
    """Shuffle the tokens marked in each row among themselves, in place."""
    flat = np.flatnonzero(moved_NL)
    row, slot = _rows_and_slots(flat, *moved_NL.shape)
    draw = random_bits(keys_N, int(slot.max(initial=-1)) + 1, _ORDER)[row, slot]
    ids_NL.ravel()[flat] = ids_NL.ravel()[flat[np.lexsort((draw, row))]]


def _choose_words(
    excluded_NL: np.ndarray,
    word_starts_NL: np.ndarray,
    lengths_N: np.ndarray,
    keys_N: np.ndarray,
    masking: Masking,
) -> np.ndarray:
    """Mark whole words, none with an excluded token, up to the budget; bool [N, L].

    All rows go through their shuffled words in step: one pass of the loop offers every row its next word.

    Example:
        word_starts [1 1 0 1 1 1 0]   length 6: [CLS], words 1:3, 3:4 and 4:5, [SEP], padding    budget 2
        word_start  [0 1 3 4 5 6]     the padding is a word too, so that [SEP] ends somewhere
        candidate   [0 1 1 1 0 0]     neither specials nor padding
        order       2, 3, 1           random bits over word numbers, sorted; others sort last
        passes      word 2 takes 1 of 2, word 3 takes 1 of 1, word 1 is not offered any more
        result      [0 0 0 1 1 0 0]
    """
    N, L = word_starts_NL.shape
    real_NL = np.arange(L) < lengths_N[:, None]
    boundary_NL = word_starts_NL & real_NL
    # The padding is one more "word": without it the last real word would reach to the end of the row.
    padded = np.flatnonzero(lengths_N < L)
    boundary_NL[padded, lengths_N[padded]] = True
    boundary_NL[:, 0] = True
    word_start = np.flatnonzero(boundary_NL)
    word_end = np.append(word_start[1:], N * L)
    first_word_N = np.searchsorted(word_start, np.arange(N) * L)
    num_words_N = np.diff(first_word_N, append=len(word_start))
    candidate = np.ones(len(word_start), bool)
    candidate[np.searchsorted(word_start, np.flatnonzero(excluded_NL & real_NL), side="right") - 1] = False
    candidate[first_word_N[padded] + num_words_N[padded] - 1] = False

    available = candidate.astype(np.int64)
    for _ in range(masking.ngram - 1):
        # How many candidates follow one another from here on. Specials are no candidates, and therefore no n-gram
        # crosses [SEP] or the end of a row.
        available = np.where(candidate, 1 + np.minimum(np.append(available[1:], 0), masking.ngram - 1), 0)

    # Random bits and the number of the word are packed in one integer: one sort shuffles every row. An argsort of the
    # bits would take several times as long. Words that are no candidates become the largest integer and sort last.
    W = int(num_words_N.max())
    number_mask = np.uint32(2 ** (W - 1).bit_length() - 1)
    order_NW = random_bits(keys_N, W, _ORDER)
    order_NW &= ~number_mask
    order_NW |= np.arange(W, dtype=np.uint32)
    candidate_NW = np.zeros((N, W), bool)
    candidate_NW[np.arange(W) < num_words_N[:, None]] = candidate
    order_NW[~candidate_NW] = np.iinfo(np.uint32).max
    order_NW.sort(axis=1)
    num_candidates_N = candidate_NW.sum(axis=1)
    ngram_NW = random_bits(keys_N, W, _NGRAM) if masking.ngram > 1 else None

    remaining_N = masking.budget_tokens(lengths_N)
    covered = np.zeros(len(word_start), bool)
    taken: list[tuple[np.ndarray, np.ndarray]] = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    active = np.flatnonzero((remaining_N > 0) & (num_candidates_N > 0))
    step = 0
    while len(active):
        number = (order_NW[active, step] & number_mask).astype(np.int64)
        word = first_word_N[active] + number
        left = remaining_N[active]
        if ngram_NW is None:
            tokens = word_end[word] - word_start[word]
            fits = tokens <= left
        else:
            reach = available[word]
            n = 1 + (ngram_NW[active, number][:, None] >= masking.cumulative_ngram[reach]).sum(axis=1)
            n = np.minimum(n, reach)
            tokens = word_end[word + n - 1] - word_start[word]
            for _ in range(masking.ngram - 1):
                n = np.where((tokens > left) & (n > 1), n - 1, n)
                tokens = word_end[word + n - 1] - word_start[word]
            fits = tokens <= left
            for i in range(masking.ngram):
                fits &= ~(covered[np.minimum(word + i, len(covered) - 1)] & (i < n))
            for i in range(masking.ngram):
                covered[word[fits & (i < n)] + i] = True
        taken.append((word_start[word[fits]], tokens[fits]))
        remaining_N[active[fits]] -= tokens[fits]
        step += 1
        active = active[(remaining_N[active] > 0) & (num_candidates_N[active] > step)]
    starts, counts = (np.concatenate(parts) for parts in zip(*taken, strict=True))
    chosen_NL = np.zeros((N, L), bool)
    chosen_NL.ravel()[span_indices(starts, counts)] = True
    return chosen_NL
