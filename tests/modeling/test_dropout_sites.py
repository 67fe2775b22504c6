"""Every place where dropout is applied, found by counting the draws: its rate, its share of zeros, and that it counts.

On TensorFlow, where attention has a path of its own only in evaluation.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import pytest
from modeling_cases import CONFIGS, features

from modeling import ClassifierModel, seeded

HIDDEN, ATTENTION, CLASSIFIER = 0.3, 0.2, 0.4
KEY = np.array([7, 11], np.uint32)
REAL = keras.random.dropout


def model_of(name: str):
    config = dataclasses.replace(CONFIGS[name], hidden_dropout_prob=HIDDEN, attention_probs_dropout_prob=ATTENTION)
    return ClassifierModel(config, 3, CLASSIFIER)


def logits(model, monkeypatch: pytest.MonkeyPatch, draw: Callable) -> np.ndarray:
    """The model's training pass with `draw(number of the site, x, rate, seed)` in the place of dropout."""
    count = iter(range(1000))
    with monkeypatch.context() as patch:
        patch.setattr(keras.random, "dropout", lambda x, rate, seed: draw(next(count), x, rate, seed))
        with seeded(keras.ops.convert_to_tensor(KEY)):
            return np.asarray(model(features(batch=16), training=True)["logits"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "bert_preln_final", "albert_groups", "albert_zh_preln", "google_fast"])
def test_every_site_zeroes_its_share_scales_the_rest_and_counts(name: str, monkeypatch: pytest.MonkeyPatch):
    model, config = model_of(name), CONFIGS[name]
    sites = []

    def recorded(number, x, rate, seed):
        y = REAL(x, rate, seed=seed)
        sites.append((tuple(x.shape), rate, np.asarray(x), np.asarray(y)))
        return y

    whole = logits(model, monkeypatch, recorded)
    blocks = config.num_hidden_layers * config.inner_group_num
    inside = (16, 9, config.hidden_size if name == "albert_zh_preln" else config.embedding_size)
    hidden, weights = (16, 9, config.hidden_size), (16, config.num_attention_heads, 9, 9)
    expected = [(inside, HIDDEN)]
    expected += [(weights, ATTENTION), (hidden, HIDDEN), (hidden, HIDDEN)] * blocks
    expected += [((16, config.hidden_size), CLASSIFIER)]
    assert [site[:2] for site in sites] == expected
    for shape, rate, x, y in sites:
        zeroed = (y == 0) & (x != 0)
        count = np.count_nonzero(x)
        # Four deviations of a binomial share.
        assert abs(zeroed.sum() / count - rate) < 4 * (rate * (1 - rate) / count) ** 0.5, shape
        np.testing.assert_allclose(y[~zeroed], x[~zeroed] / (1 - rate), rtol=1e-6)
    masks = [(y == 0).tobytes() for _, rate, _, y in sites]
    assert len(set(masks)) == len(masks)

    np.testing.assert_array_equal(
        whole, logits(model, monkeypatch, lambda number, x, rate, seed: REAL(x, rate, seed=seed))
    )
    clean = logits(model, monkeypatch, lambda number, x, rate, seed: x)
    for site in range(len(sites)):
        without = logits(model, monkeypatch, lambda number, x, rate, seed, site=site: 0 * x if number == site else x)
        assert np.abs(without - clean).max() > 1e-4, expected[site]
