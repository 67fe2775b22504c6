"""Correlation and ranking of scores against values, in NumPy: Pearson, Spearman, area under the ROC curve, thresholds.

A score that is not defined, as the correlation with a constant, is None; `or_zero` says so and counts it as 0, so that
no file holds NaN.
"""

from __future__ import annotations

import sys

import numpy as np


def pearson(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return the correlation of two vectors; None where one of them does not vary, or there are fewer than two."""
    if len(a) < 2:
        return None
    a, b = _centred(a), _centred(b)
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.clip(a @ b / scale, -1.0, 1.0)) if scale > 0 else None


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return Pearson's correlation of the ranks; equal values share the mean of their ranks."""
    return pearson(average_ranks(a), average_ranks(b))


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1, float64 [N].

    Example:
        values   3 1 3 2
        distinct 1 2 3, each 1 1 2 times, up to and with it 1 2 4
        ranks    3.5 1 3.5 2          the last rank of a value less half of its repetitions
    """
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def roc_auc(is_positive: np.ndarray, scores: np.ndarray) -> float | None:
    """Return the probability that a positive has the higher score than a negative, ties one half (Mann and Whitney).

    None where either is missing.
    """
    positive = np.asarray(is_positive, bool)
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others:
        return None
    above = average_ranks(scores)[positive].sum() - count * (count + 1) / 2
    return float(above / (count * others))


def best_threshold(is_positive: np.ndarray, scores: np.ndarray) -> float:
    """Return the threshold t for which `scores >= t` is right most often; halfway between two scores.

    Of several that are as good it is the lowest. Beyond all scores it is half a unit away from them.

    Example:
        scores 0.1 0.4 0.6, positive 0 1 1
        right  with t below all 2, between the first two 3, then 2, above all 1
        t      0.25
    """
    order = np.argsort(scores, kind="stable")
    ranked, positive = np.asarray(scores, np.float64)[order], np.asarray(is_positive, bool)[order]
    # right[k]: the k lowest are called negative.
    right = positive.sum() + np.concatenate([[0], np.cumsum(np.where(positive, -1, 1))])
    # Equal scores cannot be told apart.
    right[1:-1] = np.where(ranked[1:] > ranked[:-1], right[1:-1], -1)
    bounds = np.concatenate([[ranked[0] - 0.5], (ranked[1:] + ranked[:-1]) / 2, [ranked[-1] + 0.5]])
    return float(bounds[right.argmax()])


def or_zero(name: str, value: float | None) -> float:
    """Return the value; 0 for None, which is said on stderr."""
    if value is None:
        print(f"{name} is not defined, because one side has a single value; it is written as 0", file=sys.stderr)
        return 0.0
    return value


def _centred(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    # The mean of equal numbers may differ from them by rounding.
    return np.zeros(len(values)) if (values == values[0]).all() else values - values.mean()
