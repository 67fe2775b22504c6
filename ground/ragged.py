"""Lists of different lengths in one flat array: the indices of many spans at once."""

from __future__ import annotations

import numpy as np


def span_indices(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the indices of all spans [start, start + length), one span after the other; int64 [sum of lengths].

    Example:
        starts   [5, 0]     lengths [2, 3]
        ends     [2, 5]                         where each span ends in the result
        shift    [5, 5, -2, -2, -2]             start - where the span begins in the result
        result   [5, 6, 0, 1, 2]                arange(5) + shift
    """
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def bounds_of(lengths: np.ndarray | list[int]) -> np.ndarray:
    """Return where each of the lists begins in the flat array, and where the last one ends; int64 [N + 1]."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
