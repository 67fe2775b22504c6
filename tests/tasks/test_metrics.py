"""Scores against SciPy and against hand counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tasks.metrics import accuracy, classification_scores, confusion_matrix, f1_scores, mean_and_deviation

LABELS = np.array([0, 0, 1, 1, 1, 2])
PREDICTIONS = np.array([0, 1, 1, 1, 0, 2])


def test_hand_counts():
    assert confusion_matrix(LABELS, PREDICTIONS, 3).tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 1]]
    assert accuracy(LABELS, PREDICTIONS) == pytest.approx(4 / 6)
    assert f1_scores(LABELS, PREDICTIONS, 3) == pytest.approx([1 / 2, 2 / 3, 1])


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=60))
def test_matthews_is_the_correlation_of_two_binary_variables(pairs):
    labels, predictions = np.array(pairs).T
    scores = classification_scores(labels, predictions, 2)
    if len(set(labels)) == len(set(predictions)) == 2:
        assert scores["matthews_correlation"] == pytest.approx(stats.pearsonr(labels, predictions)[0], abs=1e-9)
    else:
        assert scores["matthews_correlation"] == 0
    true_positives = int((labels & predictions).sum())
    if true_positives:
        precision, recall = true_positives / predictions.sum(), true_positives / labels.sum()
        assert scores["f1"] == pytest.approx(2 * precision * recall / (precision + recall))


def test_mean_and_deviation_over_runs():
    assert mean_and_deviation([{"accuracy": 0.5}, {"accuracy": 0.7}])["accuracy"] == pytest.approx((0.6, np.sqrt(0.02)))
    assert mean_and_deviation([{"accuracy": 0.5}])["accuracy"] == (0.5, 0.0)
