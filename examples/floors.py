"""What trivial methods score on the very examples that a recipe scores: what a model has to beat.

naive_bayes     character pairs of a text, multinomial naive Bayes (scikit-learn)
second_text     the same of the second text alone: what the hypothesis gives away (Gururangan et al. 2018)
shared_pairs    two texts match where they share enough character pairs; how many is enough, training decides

All scores are accuracies.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl.app import UsageError

Examples = Sequence[Any]
"""With `text_a`, `text_b` and `label`."""


def naive_bayes(train: Examples, dev: Examples) -> float:
    """Return the accuracy on dev of naive Bayes on the first texts; raises `UsageError` without scikit-learn."""
    return _naive_bayes(train, dev, "text_a")


def second_text(train: Examples, dev: Examples) -> float:
    """Return the accuracy on dev of naive Bayes on the second texts; raises `UsageError` without scikit-learn."""
    return _naive_bayes(train, dev, "text_b")


def _naive_bayes(train: Examples, dev: Examples, text: str) -> float:
    try:
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.naive_bayes import MultinomialNB
    except ImportError:
        raise UsageError("the floors need scikit-learn: make install EXTRA=test, or pip install scikit-learn") from None
    pairs = CountVectorizer(analyzer="char", ngram_range=(2, 2))
    model = MultinomialNB().fit(
        pairs.fit_transform([getattr(example, text) for example in train]), [example.label for example in train]
    )
    return float(
        model.score(pairs.transform([getattr(example, text) for example in dev]), [example.label for example in dev])
    )


def shared_pairs(train: Examples, dev: Examples) -> float:
    """Return the accuracy on dev of the threshold on shared pairs that is best on train; labels are "0" and "1".

    Example:
        天气好 and 天气坏 share 1 of 3 pairs
    """
    shares, labels = _shares(train), _labels(train)
    threshold = max([*np.unique(shares), np.inf], key=lambda each: np.mean((shares >= each) == labels))
    return float(np.mean((_shares(dev) >= threshold) == _labels(dev)))


def _shares(examples: Examples) -> np.ndarray:
    found = []
    for example in examples:
        one, other = ({*itertools.pairwise(text)} for text in (example.text_a, example.text_b))
        found.append(len(one & other) / max(1, len(one | other)))
    return np.array(found)


def _labels(examples: Examples) -> np.ndarray:
    return np.array([example.label == "1" for example in examples])


FLOORS: dict[str, tuple[str, Callable[[Examples, Examples], float]]] = {
    "naive_bayes": ("naive Bayes", naive_bayes),
    "second_text": ("second text alone", second_text),
    "shared_pairs": ("shared pairs", shared_pairs),
}
"""Method -> what a table calls it, and the function."""
