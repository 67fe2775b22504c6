"""Lengths that batches are padded to: the few that pad least, since every length is a program to compile."""

from __future__ import annotations

import numpy as np

# Batches are cut from windows of this many batches, sorted by length: little padding, and still a random order.
WINDOW_BATCHES = 64
_MULTIPLE_TOKENS = 4
_MOST_LENGTHS = 8
_BATCHES_PER_LENGTH = 8


def longest_of_batches(lengths_tokens: np.ndarray, batch_size: int) -> np.ndarray:
    """Return the length of the longest example that the batches of an epoch are expected to have, ascending.

    Example: lengths 3 9 5 7, batch_size 2
        5 9
    """
    batches = -(-len(lengths_tokens) // batch_size)
    window = min(WINDOW_BATCHES, batches)
    last = np.ceil(np.arange(1, window + 1) * len(lengths_tokens) / window).astype(np.int64) - 1
    return np.sort(lengths_tokens)[last]


def count_of_lengths(batches: int) -> int:
    """Return how many lengths are worth a program: one for every eight batches of an epoch, eight at most."""
    return min(_MOST_LENGTHS, max(1, batches // _BATCHES_PER_LENGTH))


def padded_lengths(longest: np.ndarray, count: int, most: int) -> tuple[int, ...]:
    """Return `count` lengths or fewer, ascending, that pad batches with the given longest examples least.

    They are multiples of 4 or `most`; the last one holds the longest of all. They are chosen by the shortest path:
    least[j] is the tokens of all batches that candidate j holds, padded to as many lengths as were chosen so far.

    Example: longest 10 11 12 29 30 61, most 64
        two lengths 32 64, three 12 32 64

    Args:
        longest: tokens of the longest example of each batch, ascending.
        count: of lengths.
        most: longest length that there is.
    """
    if not len(longest):
        return (most,)
    rounded = np.minimum(-(-longest // _MULTIPLE_TOKENS) * _MULTIPLE_TOKENS, most)
    candidates, counts = np.unique(np.maximum(rounded, 1), return_counts=True)
    held = np.concatenate([[0], np.cumsum(counts)])
    # cost[i, j]: tokens of the batches longer than candidate i - 1 in length j.
    cost = (held[None, 1:] - held[:-1, None]) * candidates[None, :].astype(np.float64)
    cost[np.tril_indices(len(candidates), -1)] = np.inf
    least, before = cost[0], list[np.ndarray]()
    for _ in range(min(count, len(candidates)) - 1):
        sums = least[:-1, None] + cost[1:, :]
        before.append(sums.argmin(axis=0))
        least = sums.min(axis=0)
    chosen, place = [len(candidates) - 1], len(candidates) - 1
    for steps in reversed(before):
        place = int(steps[place])
        chosen.append(place)
    return tuple(int(candidates[place]) for place in sorted(set(chosen)))
