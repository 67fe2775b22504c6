"""Scores of predictions against labels, in NumPy; the standard definitions, checked against SciPy and by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

Scores = dict[str, float]


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_labels: int) -> np.ndarray:
    """Return counts int64 [num_labels, num_labels]: row = true label, column = prediction."""
    counts = np.zeros((num_labels, num_labels), np.int64)
    np.add.at(counts, (labels, predictions), 1)
    return counts


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return the share of predictions that are right."""
    return float((labels == predictions).mean())


def f1_scores(labels: np.ndarray, predictions: np.ndarray, num_labels: int) -> np.ndarray:
    """Return the F1 of each class, float64 [num_labels]; 0 where a class neither occurs nor is predicted."""
    counts = confusion_matrix(labels, predictions, num_labels)
    true_positives = np.diag(counts)
    denominators = counts.sum(axis=0) + counts.sum(axis=1)
    return np.divide(2 * true_positives, denominators, out=np.zeros(num_labels), where=denominators > 0)


def matthews_correlation(labels: np.ndarray, predictions: np.ndarray, num_labels: int) -> float:
    """Return Matthews' correlation coefficient for any number of classes (Gorodkin 2004); 0 where it is undefined."""
    counts = confusion_matrix(labels, predictions, num_labels).astype(np.float64)
    total, right = counts.sum(), np.trace(counts)
    predicted, true = counts.sum(axis=0), counts.sum(axis=1)
    denominator = np.sqrt(total**2 - predicted @ predicted) * np.sqrt(total**2 - true @ true)
    return float((right * total - predicted @ true) / denominator) if denominator > 0 else 0.0


def classification_scores(labels: np.ndarray, predictions: np.ndarray, num_labels: int) -> Scores:
    """Return accuracy, F1 (of class 1 where there are two classes), macro F1 and Matthews' correlation."""
    per_class = f1_scores(labels, predictions, num_labels)
    scores = {"accuracy": accuracy(labels, predictions), "macro_f1": float(per_class.mean())}
    if num_labels == 2:
        scores["f1"] = float(per_class[1])
    return {**scores, "matthews_correlation": matthews_correlation(labels, predictions, num_labels)}


# The metric names that a row of datasets.toml may choose its best checkpoint by.
CLASSIFICATION_METRICS = ("accuracy", "macro_f1", "f1", "matthews_correlation")


def calibration(
    confidences: np.ndarray, right: np.ndarray, bins: int = 10
) -> tuple[float, list[tuple[float, float, int, float, float]]]:
    """Return the expected calibration error (Guo et al. 2017) and the bins of equal width that are not empty.

    A bin is (lower end, upper end, answers, mean confidence, share that is right). Upper ends belong to their bin. The
    error is the mean distance of the last two, weighted by the answers.
    """
    place = np.clip(np.ceil(np.asarray(confidences, np.float64) * bins).astype(np.int64) - 1, 0, bins - 1)
    found, error = [], 0.0
    for number in np.unique(place).tolist():
        inside = place == number
        mean, share, count = float(confidences[inside].mean()), float(right[inside].mean()), int(inside.sum())
        found.append((number / bins, (number + 1) / bins, count, mean, share))
        error += count / len(place) * abs(mean - share)
    return error, found


def mean_and_deviation(runs: list[Scores]) -> Mapping[str, tuple[float, float]]:
    """Return mean and sample standard deviation of each score that all runs have (deviation 0 for one run)."""
    spread: Callable[[np.ndarray], float] = lambda v: float(v.std(ddof=1)) if len(v) > 1 else 0.0  # noqa: E731
    names = [name for name in runs[0] if all(name in run for run in runs)]
    columns = {name: np.array([run[name] for run in runs]) for name in names}
    return {name: (float(values.mean()), spread(values)) for name, values in columns.items()}
