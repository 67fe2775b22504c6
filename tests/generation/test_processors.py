"""Processors of scores: transformers' own numbers, and the vectorised forms beside loops."""

from __future__ import annotations

import numpy as np
import pytest
from absl.app import UsageError

from generation.model import Tokens
from generation.processors import Processors, lowered, present, repeating
from generation.rows import Rows, gumbel
from generation.settings import Settings

TOKENS = Tokens(start=1, end=2, padding=0)
X = np.array([2, -1, 0.5, 1, -0.5, 0], np.float32)


def test_repetition_penalty_on_logits_and_on_log_probabilities():
    seen = np.asarray(present(np.array([[[1, 3, 4, 0]]], np.int32), np.arange(4) < 3, 6))[0, 0]
    assert seen.tolist() == [False, True, False, True, True, False]
    log_probs = X - np.log(np.exp(X).sum())
    for x, expected in (
        (X, [2, -1.5, 0.5, 0.6667, -0.75, 0]),
        (log_probs, [-0.6196, -5.4294, -2.1196, -2.4294, -4.6794, -2.6196]),
    ):
        np.testing.assert_allclose(np.where(seen, np.asarray(lowered(x, 1.5)), x), expected, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_repeating_equals_a_loop(size: int):
    generator = np.random.default_rng(size)
    tokens = generator.integers(0, 3, (3, 2, 8)).astype(np.int32)
    for length in range(1, 9):
        found = np.asarray(repeating(tokens, length, size, 5))
        for row, marked in zip(tokens.reshape(6, 8), found.reshape(6, 5), strict=True):
            kept = row[:length].tolist()
            last = kept[length - size + 1 :] if length >= size - 1 else None
            banned = {kept[i + size - 1] for i in range(length - size + 1) if kept[i : i + size - 1] == last}
            assert set(np.flatnonzero(marked)) == banned


def processed(step: int, minimum: int = 0, limit: int = 4, **values: object) -> np.ndarray:
    settings = Settings.from_mapping({"max_new_tokens": 9, "min_new_tokens": minimum, **values})
    history = np.array([[[1, 3, 4, 3, 0]]], np.int32)
    bounds = np.array([minimum]), np.array([limit])
    return np.asarray(Processors(settings, TOKENS, 6)(X[None, None], history, step, *bounds))[0, 0]


def test_each_process_does_what_it_says():
    np.testing.assert_array_equal(processed(1), X)
    assert processed(1, minimum=2)[2] == -np.inf
    assert processed(2, minimum=2)[2] == X[2]
    assert np.flatnonzero(np.isfinite(processed(0, forced_bos_token_id=5))).tolist() == [5]
    np.testing.assert_array_equal(processed(1, forced_bos_token_id=5), X)
    assert processed(3, forced_eos_token_id=2).tolist() == [-np.inf, -np.inf, 0, -np.inf, -np.inf, -np.inf]
    np.testing.assert_array_equal(processed(2, forced_eos_token_id=2), X)
    assert np.flatnonzero(~np.isfinite(processed(1, suppress_tokens=[0, 4]))).tolist() == [0, 4]
    assert np.flatnonzero(~np.isfinite(processed(3, no_repeat_ngram_size=2))).tolist() == [4]
    assert np.flatnonzero(np.isfinite(processed(3, rule="fairseq"))).tolist() == [2]
    assert np.flatnonzero(~np.isfinite(processed(1, rule="fairseq"))).tolist() == [0]


def test_ids_beyond_the_vocabulary_are_refused():
    with pytest.raises(UsageError, match="suppress_tokens has 6; expected an id below the vocabulary's size, 6"):
        Processors(Settings(suppress_tokens=(6,)), TOKENS, 6)


def drawn(scores: np.ndarray, count: int = 4000, **values: object) -> np.ndarray:
    settings = Settings.from_mapping({"do_sample": True, "num_return_sequences": 4, **values})
    rows = Rows(settings, TOKENS, len(scores))
    keys = np.random.default_rng(0).integers(0, 2**32, (count // 4, 2), np.uint32)
    batch = np.broadcast_to(scores.astype(np.float32), (count // 4, 4, len(scores)))
    return np.bincount(np.asarray(rows._drawn(batch, keys, 3)).ravel(), minlength=len(scores)) / count


def test_draws_have_the_distribution_of_temperature_top_k_and_top_p():
    np.testing.assert_allclose(drawn(X), np.exp(X) / np.exp(X).sum(), atol=0.03)
    hot = np.exp(X / 2) / np.exp(X / 2).sum()
    np.testing.assert_allclose(drawn(X, temperature=2.0), hot, atol=0.03)
    # Of the equal fourth and fifth the lower id stays.
    assert np.flatnonzero(drawn(np.array([1.0, 1, 1, 1, 0, 0]), top_k=2)).tolist() == [0, 1]
    assert np.flatnonzero(drawn(np.array([1.0, 1, 1, 1, 0, 0]), top_p=0.5)).tolist() == [0, 1, 2]
    assert np.flatnonzero(drawn(X, top_p=1e-6)).tolist() == [0]
    # Shares of the three best are .63, .23, .14: the first two reach .7.
    both = drawn(X, top_k=3, top_p=0.7)
    np.testing.assert_allclose(both[[0, 3]], np.exp([2, 1]) / np.exp([2, 1]).sum(), atol=0.03)
    assert both.sum() == pytest.approx(both[[0, 3]].sum())


def test_noise_is_gumbels_and_each_number_its_own():
    keys = np.random.default_rng(0).integers(0, 2**32, (20, 2), np.uint32)
    noise = np.asarray(gumbel(keys, 5, 3, np.arange(500, dtype=np.int32)[None, None]))
    assert noise.shape == (20, 3, 500)
    assert np.isfinite(noise).all()
    assert noise.mean() == pytest.approx(0.5772, abs=0.03)
    assert noise.std() == pytest.approx(1.2825, abs=0.03)
    assert len(np.unique(noise)) > 0.99 * noise.size
    some = np.asarray(gumbel(keys[7:8], 5, 3, np.array([[[499, 3]]], np.int32)))
    np.testing.assert_allclose(some[0], noise[7][:, [499, 3]], atol=1e-6)
    correlations = np.corrcoef(
        np.asarray([gumbel(keys[:1], t, 1, np.arange(500)[None, None]) for t in range(8)])[:, 0, 0]
    )
    assert np.abs(correlations - np.eye(8)).max() < 0.2
