"""Retrieval of each text's partner among all by cosine (Tatoeba in XTREME) or by its margin over the neighbours of both
texts (Artetxe and Schwenk 2019, section 3.2), in blocks: never a matrix of N x N.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Scores = dict[str, float]
BLOCK_ELEMENTS = 1 << 22
"""Cosines that are held at a time, 16 MiB of them."""
MARGINS = ("none", "ratio", "distance")
# A margin by ratio has no meaning where texts are less than orthogonal to their neighbours; cosines decide there.
_LEAST_DENSITY = 1e-6


@dataclass(frozen=True)
class Margin:
    """How near two texts are: their cosine, or that against the mean cosine of each to its nearest on the other side.

    Attributes:
        kind: "none", "ratio": cosine / mean, or "distance": cosine - mean.
        neighbours: how many are the nearest.
    """

    kind: str = "none"
    neighbours: int = 4

    def scores(self, cosines: np.ndarray, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return the scores of cosines [M, N], from the densities of the queries [M] and keys [N]."""
        if self.kind == "none":
            return cosines
        means = (queries[:, None] + keys[None, :]) / 2
        return cosines - means if self.kind == "distance" else cosines / np.maximum(means, _LEAST_DENSITY)

    def densities(self, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return the mean cosine of each query to its nearest keys, float32 [M]; zeros where nothing asks for it."""
        found = np.zeros(len(queries), np.float32)
        count = min(self.neighbours, len(keys))
        for rows, cosines in blocks(queries, keys) if self.kind != "none" else ():
            found[rows] = np.partition(cosines, len(keys) - count, axis=1)[:, -count:].mean(axis=1)
        return found


def blocks(queries: np.ndarray, keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the numbers of some queries and their cosines to all keys [M, N]."""
    rows = max(1, BLOCK_ELEMENTS // max(len(keys), 1))
    for begin in range(0, len(queries), rows):
        cosines = queries[begin : begin + rows] @ keys.T
        yield np.arange(begin, begin + len(cosines)), cosines


def ranks_and_nearest(
    queries: np.ndarray, keys: np.ndarray, margin: Margin = Margin()
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rank from 1 of key n for query n, and the index of the best key, int64 [N] both.

    Of equal scores the key of the lower index counts as the better one, so that rank 1 and being the best are one.

    Args:
        queries: of length 1, float32 [N, D].
        keys: as many.
        margin: what is the best.
    """
    count = len(keys)
    ranks, nearest = np.empty(count, np.int64), np.empty(count, np.int64)
    around_queries, around_keys = margin.densities(queries, keys), margin.densities(keys, queries)
    for own, cosines in blocks(queries, keys):
        scores = margin.scores(cosines, around_queries[own], around_keys)
        partner = scores[np.arange(len(scores)), own][:, None]
        before = np.arange(count) < own[:, None]
        ranks[own] = 1 + ((scores > partner) | ((scores == partner) & before)).sum(axis=1)
        nearest[own] = scores.argmax(axis=1)
    return ranks, nearest


def retrieval_scores(a: np.ndarray, b: np.ndarray, margin: Margin = Margin()) -> Scores:
    """Return accuracy at 1 and mean reciprocal rank of a's partner among b, of b's among a, and the mean of both."""
    found: Scores = {}
    for name, both in (("a_to_b", (a, b)), ("b_to_a", (b, a))):
        ranks, _ = ranks_and_nearest(*both, margin)
        found[f"retrieval_accuracy_{name}"] = float((ranks == 1).mean())
        found[f"mrr_{name}"] = float((1 / ranks).mean())
    means = {name: (found[f"{name}_a_to_b"] + found[f"{name}_b_to_a"]) / 2 for name in ("retrieval_accuracy", "mrr")}
    return {**means, **found}


def mined_pairs(a: np.ndarray, b: np.ndarray, margin: Margin) -> list[tuple[int, int, float]]:
    """Return pairs of a text a and a text b with their scores, the nearest first, each text in one pair at most.

    Candidates are the best text b of every text a and the best text a of every text b.

    Args:
        a: of length 1, float32 [N, D].
        b: float32 [M, D].
        margin: how near two texts are.
    """
    if not len(a) or not len(b):
        return []
    around_a, around_b = margin.densities(a, b), margin.densities(b, a)
    found: dict[tuple[int, int], float] = {}
    for rows, cosines in blocks(a, b):
        scores = margin.scores(cosines, around_a[rows], around_b)
        best = scores.argmax(axis=1)
        found |= dict(zip(zip(rows.tolist(), best.tolist(), strict=True), scores.max(axis=1).tolist(), strict=True))
    for rows, cosines in blocks(b, a):
        scores = margin.scores(cosines, around_b[rows], around_a)
        best = scores.argmax(axis=1)
        found |= dict(zip(zip(best.tolist(), rows.tolist(), strict=True), scores.max(axis=1).tolist(), strict=True))
    taken: tuple[set[int], set[int]] = (set(), set())
    pairs = []
    for (one, other), score in sorted(found.items(), key=lambda item: (-item[1], item[0])):
        if one not in taken[0] and other not in taken[1]:
            taken[0].add(one)
            taken[1].add(other)
            pairs.append((one, other, score))
    return pairs


def best_f1_threshold(pairs: Sequence[tuple[float, bool]], total: int) -> float:
    """Return the threshold from which pairs have the best F1, between two scores; of equal ones the highest.

    Args:
        pairs: the score of each, and whether it is right.
        total: right pairs that there are.

    Example:
        pairs (0.9, right), (0.8, wrong), (0.7, right), (0.2, wrong), total 2
        F1 2/3, 1/2, 4/5, 2/3; the threshold is 0.45
    """
    ordered = sorted(pairs, key=lambda pair: -pair[0])
    best, threshold, right = -1.0, 0.0, 0
    for number, (score, is_right) in enumerate(ordered, start=1):
        right += is_right
        below = ordered[number][0] if number < len(ordered) else score
        if (number == len(ordered) or below < score) and (f1 := 2 * right / (number + total)) > best:
            best, threshold = f1, (score + below) / 2
    return threshold
