"""Retrieval of each text's partner among all by cosine (Tatoeba in XTREME), in blocks: never a matrix of N x N."""

from __future__ import annotations

import numpy as np

Scores = dict[str, float]
BLOCK_ELEMENTS = 1 << 22
"""Cosines that are held at a time, 16 MiB of them."""


def ranks_and_nearest(queries: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rank from 1 of key n for query n, and the index of the best key, int64 [N] both.

    Of equal cosines the key of the lower index counts as the better one, so that rank 1 and being the best are one.

    Args:
        queries: of length 1, float32 [N, D].
        keys: as many.
    """
    count = len(keys)
    ranks, nearest = np.empty(count, np.int64), np.empty(count, np.int64)
    rows = max(1, BLOCK_ELEMENTS // max(count, 1))
    for begin in range(0, count, rows):
        cosines = queries[begin : begin + rows] @ keys.T
        own = np.arange(begin, begin + len(cosines))
        partner = cosines[np.arange(len(cosines)), own][:, None]
        before = np.arange(count) < own[:, None]
        ranks[own] = 1 + ((cosines > partner) | ((cosines == partner) & before)).sum(axis=1)
        nearest[own] = cosines.argmax(axis=1)
    return ranks, nearest


def retrieval_scores(a: np.ndarray, b: np.ndarray) -> Scores:
    """Return accuracy at 1 and mean reciprocal rank of a's partner among b, of b's among a, and the mean of both."""
    found: Scores = {}
    for name, ranks in (("a_to_b", ranks_and_nearest(a, b)[0]), ("b_to_a", ranks_and_nearest(b, a)[0])):
        found[f"retrieval_accuracy_{name}"] = float((ranks == 1).mean())
        found[f"mrr_{name}"] = float((1 / ranks).mean())
    means = {name: (found[f"{name}_a_to_b"] + found[f"{name}_b_to_a"]) / 2 for name in ("retrieval_accuracy", "mrr")}
    return {**means, **found}
