"""Scores of sets of labels, as scikit-learn defines them: three averages of F1, and the share that is all right."""

from __future__ import annotations

import numpy as np

Scores = dict[str, float]
LABEL_SET_METRICS = ("micro_f1", "macro_f1", "sample_f1", "subset_accuracy")


def label_set_scores(labels: np.ndarray, predictions: np.ndarray) -> Scores:
    """Return F1 over all decisions (micro), the mean over labels (macro) and over examples, and the share of examples
    whose every label is right.

    A label that neither occurs nor is predicted, and an example with neither, counts 0, as scikit-learn has it.

    Args:
        labels: boolean [N, C].
        predictions: boolean [N, C].
    """
    both, either = labels & predictions, labels.astype(np.int64) + predictions

    def f1(axis: int | None) -> np.ndarray:
        total = np.asarray(either.sum(axis=axis), np.float64)
        return np.divide(2.0 * both.sum(axis=axis), total, out=np.zeros_like(total), where=total > 0)

    return {
        "micro_f1": float(f1(None)),
        "macro_f1": float(f1(0).mean()),
        "sample_f1": float(f1(1).mean()),
        "subset_accuracy": float((labels == predictions).all(axis=1).mean()),
    }
