import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data.forms import FORMS, Segments
from data.masking import Masking, MaskVocabulary, mask_examples
from data.randomness import keys
from data.recipe import Recipe, Specials
from data.word_order import PRESETS, WordOrder, shuffle_words

CLS, SEP, MASK = 2, 3, 4
V = 700
SPECIAL = np.zeros(V, bool)
SPECIAL[:10] = True
VOCABULARY = MaskVocabulary(MASK, np.arange(20, V, dtype=np.int32), SPECIAL)


def p_value(result: Any) -> float:
    """SciPy's results have no types of their own."""
    return result.pvalue


def rows_of(segments_of_rows, length):
    """[CLS] a [SEP] (b [SEP]) of segment lengths; the id of a token is its position plus 10, so none occurs twice."""
    ids = np.zeros((len(segments_of_rows), length), np.int32)
    lengths = np.zeros(len(ids), np.int64)
    for row, segments in enumerate(segments_of_rows):
        ids[row, 0], end = CLS, 1
        for size in segments:
            ids[row, end : end + size] = 10 + np.arange(end, end + size)
            ids[row, end + size] = SEP
            end += size + 1
        lengths[row] = end
    return ids, lengths


@st.composite
def batches(draw):
    rows = draw(st.lists(st.lists(st.integers(1, 25), min_size=1, max_size=2), min_size=1, max_size=4))
    ids, lengths = rows_of(rows, 3 + max(map(sum, rows)) + draw(st.integers(0, 3)))
    hidden = np.asarray(draw(st.lists(st.booleans(), min_size=ids.size, max_size=ids.size))).reshape(ids.shape)
    hidden &= np.random.default_rng(draw(st.integers(0, 99))).random(ids.shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    return ids, hidden & ~SPECIAL[ids], lengths


word_orders = st.builds(
    WordOrder,
    rate=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    tokens=st.integers(2, 5),
    windows=st.sampled_from(["unmasked", "any"]),
    overlap=st.booleans(),
    identity=st.booleans(),
    labels=st.sampled_from(["all", "changed"]),
)


def run(batch, word_order, seed=0):
    ids, hidden, lengths = batch
    shown = np.where(hidden, MASK, ids).astype(np.int32)
    key = keys(seed, np.arange(len(ids)))
    return shown, shuffle_words(shown, ids, hidden, lengths, key, word_order, SPECIAL[ids])


def labelled(out, row):
    used = out["word_order_weights"][row] > 0
    return out["word_order_positions"][row, used], out["word_order_ids"][row, used]


@settings(max_examples=200, deadline=None)
@given(batches(), word_orders, st.integers(0, 2**40))
def test_laws_of_any_shuffling(batch, word_order, seed):
    ids, hidden, lengths = batch
    shown, out = run(batch, word_order, seed)
    assert out["word_order_positions"].shape == (len(ids), word_order.num_slots(ids.shape[1]))
    for row, length in enumerate(lengths):
        positions, labels = labelled(out, row)
        assert (np.diff(positions) > 0).all()
        assert not hidden[row, positions].any()
        np.testing.assert_array_equal(labels, ids[row, positions])
        empty = out["word_order_weights"][row] == 0
        assert not out["word_order_positions"][row, empty].any()
        assert not out["word_order_ids"][row, empty].any()
        # Nothing is lost or made, whatever the windows are.
        assert sorted(out["input_ids"][row]) == sorted(shown[row])
        np.testing.assert_array_equal(out["input_ids"][row, length:], shown[row, length:])
        assert out["input_ids"][row, 0] == CLS


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(batches(), word_orders, st.integers(0, 2**40))
def test_windows_of_the_paper(batch, word_order, seed):
    """Disjoint, unmasked, of one segment; a permutation of what was there; all labelled; restoring gives the input."""
    word_order = dataclasses.replace(word_order, windows="unmasked", overlap=False, labels="all")
    ids, hidden, lengths = batch
    shown, out = run(batch, word_order, seed)
    K = word_order.tokens
    for row in range(len(ids)):
        positions, labels = labelled(out, row)
        restored = out["input_ids"][row].copy()
        restored[positions] = labels
        np.testing.assert_array_equal(restored, shown[row])
        assert not SPECIAL[ids[row, positions]].any()
        assert len(positions) % K == 0
        # Runs of neighbouring positions are whole windows side by side, and each holds its own tokens.
        for run_positions in np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1):
            assert len(run_positions) % K == 0
            for window in run_positions.reshape(-1, K):
                now = out["input_ids"][row, window]
                assert sorted(now) == sorted(ids[row, window])
                assert word_order.identity or (now != ids[row, window]).any()
        # As many windows as the rate asks for, rounded up or down, or none has room any more.
        ordinary = ~SPECIAL[ids[row]] & ~hidden[row] & (np.arange(ids.shape[1]) < lengths[row])
        possible = np.convolve(ordinary, np.ones(K, int), "valid") == K
        wanted = word_order.rate * possible.sum()
        taken = len(positions) // K
        assert taken <= math.ceil(wanted)
        free = ordinary.copy()
        free[positions] = False
        room = (np.convolve(free, np.ones(K, int), "valid") == K).any()
        assert taken >= math.floor(wanted) or not room


@settings(max_examples=50, deadline=None)
@given(batches(), word_orders, st.integers(0, 2**40))
def test_a_row_is_shuffled_by_its_own_key(batch, word_order, seed):
    ids, hidden, lengths = batch
    shown, whole = run(batch, word_order, seed)
    key = keys(seed, np.arange(len(ids)))
    for row in range(len(ids)):
        one = slice(row, row + 1)
        alone = shuffle_words(shown[one], ids[one], hidden[one], lengths[one], key[one], word_order, SPECIAL[ids[one]])
        for name, value in alone.items():
            np.testing.assert_array_equal(value[0], whole[name][row])


def many(copies, segments=(60, 60), length=128):
    ids, lengths = rows_of([segments], length)
    return np.repeat(ids, copies, 0), np.zeros((copies, length), bool), np.repeat(lengths, copies)


@pytest.mark.parametrize("rate", [0.05, 0.1])
@pytest.mark.parametrize("preset", PRESETS)
def test_rate_is_that_of_the_windows(preset, rate):
    copies = 4000
    word_order = dataclasses.replace(PRESETS[preset], rate=rate, labels="all", overlap=False)
    _, out = run(many(copies), word_order)
    # Windows of three in two segments of 60; a sampler of any tokens also begins on the last two of each segment,
    # where the row still has three.
    starts = 2 * 58 if preset == "paper" else 60 + 59
    windows = out["word_order_weights"].sum() / 3
    assert abs(windows - copies * starts * rate) < 4 * np.sqrt(copies * starts * rate * (1 - rate))


def test_overlapping_windows_move_the_share_of_starts_too():
    copies, rate = 3000, 0.1
    batch = many(copies)
    _, out = run(batch, WordOrder(rate=rate, windows="any", overlap=True, identity=False))
    touched = (out["word_order_weights"]).sum(axis=1).mean()
    # Without replacement 12 of 119 starts, so a token in the middle is in none of its three windows with (1 - .1)^3.
    assert abs(touched - 120 * (1 - 0.9**3)) < 1.5
    _, released = run(batch, PRESETS["released"])
    changed = released["input_ids"] != batch[0]
    # A label stands only where a token changed when its first window was shuffled; later windows move more.
    weights = released["word_order_weights"].sum()
    assert weights < 0.75 * out["word_order_weights"].sum()
    assert 0 < changed.sum() - weights < 0.2 * weights


def test_every_permutation_and_every_place_is_as_likely_as_any_other():
    batch = many(6000, (30, 30), 66)
    _, out = run(batch, WordOrder(rate=0.05))
    positions = out["word_order_positions"][out["word_order_weights"] > 0].reshape(-1, 3)
    rows = np.nonzero(out["word_order_weights"])[0][::3]
    now = out["input_ids"][rows[:, None], positions] - 10 - positions[:, :1]
    orders = list(itertools.permutations(range(3)))
    counts = [int((now == order).all(axis=1).sum()) for order in orders]
    assert sum(counts) == len(now)
    assert stats.chisquare(counts).pvalue > 1e-4
    # Windows push each other to the ends of a segment: places are alike only by symmetry.
    starts = np.bincount(positions[:, 0], minlength=66)
    expected = [*range(1, 29), *range(32, 60)]
    assert np.flatnonzero(starts).tolist() == expected
    assert p_value(stats.chi2_contingency([starts[1:29], starts[32:60]])) > 1e-4
    assert p_value(stats.chi2_contingency([starts[1:29], starts[28:0:-1]])) > 1e-4


def test_released_windows_move_masked_and_separating_tokens_without_a_label_for_them():
    ids, _, lengths = many(3000, (20, 20), 43)
    hidden = np.zeros(ids.shape, bool)
    hidden[:, 5] = True
    shown, out = run((ids, hidden, lengths), PRESETS["released"])
    assert (out["input_ids"][:, 5] != MASK).any()
    assert (out["input_ids"][:, 21] != SEP).any()
    assert (out["input_ids"] == SEP).sum() == 2 * len(ids)
    chosen = out["word_order_weights"] > 0
    assert 5 not in out["word_order_positions"][chosen]
    assert 21 in out["word_order_positions"][chosen]
    _, paper = run((ids, hidden, lengths), PRESETS["paper"])
    assert (paper["input_ids"][:, 5] == MASK).all()
    assert (paper["input_ids"][:, [0, 21, 42]] == shown[:, [0, 21, 42]]).all()


@settings(max_examples=50, deadline=None)
@given(batches(), word_orders, st.integers(0, 2**40))
def test_labels_are_the_text_and_not_what_is_shown_in_its_place(batch, word_order, seed):
    ids, hidden, lengths = batch
    shown = np.where(SPECIAL[ids], ids, ids + 300).astype(np.int32)
    out = shuffle_words(shown, ids, hidden, lengths, keys(seed, np.arange(len(ids))), word_order, SPECIAL[ids])
    for row in range(len(ids)):
        positions, labels = labelled(out, row)
        np.testing.assert_array_equal(labels, ids[row, positions])
        assert sorted(out["input_ids"][row]) == sorted(shown[row])


@settings(max_examples=50, deadline=None)
@given(batches(), st.integers(2, 5), st.integers(0, 2**40))
def test_windows_of_any_tokens_reach_every_token_behind_their_start(batch, tokens, seed):
    """At rate 1 all windows are taken: the [SEP]s are in them, the last one too, and the tokens behind a [SEP]."""
    ids, _, lengths = batch
    word_order = WordOrder(rate=1.0, tokens=tokens, windows="any", overlap=True, labels="all")
    key = keys(seed, np.arange(len(ids)))
    nothing = np.zeros(ids.shape, bool)
    out = shuffle_words(ids, ids, nothing, lengths, key, word_order, SPECIAL[ids])
    for row, length in enumerate(lengths):
        starts = [i for i in range(length - tokens + 1) if not SPECIAL[ids[row, i]]]
        reached = sorted({i + k for i in starts for k in range(tokens)})
        assert labelled(out, row)[0].tolist() == reached[: word_order.num_slots(ids.shape[1])]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**40), word_orders, st.floats(0.0, 0.6))
def test_features_with_masks_and_shuffled_words_restore_to_the_text(seed, word_order, rate):
    ids, _, lengths = many(5)
    starts = np.ones(ids.shape, bool)
    masking = Masking(rate, 30, ngram=2)
    bounds = np.stack([np.zeros(5, int), np.full(5, 62), lengths], axis=1)
    segments = Segments(ids, starts, bounds, np.zeros(5, int))
    key = keys(seed, np.arange(5))
    word_order = dataclasses.replace(word_order, windows="unmasked", overlap=False, labels="all")
    recipe = Recipe("albert", masking, False, False, "none", 128, 1, 0.0, seed, word_order=word_order)
    features = FORMS["one_row"].features(segments, key, recipe, Specials(CLS), VOCABULARY)
    plain = mask_examples(ids, starts, lengths, key, masking, VOCABULARY)
    restored = features["input_ids"].copy()
    predicted = []
    for name in ("masked_lm", "word_order"):
        row, slot = np.nonzero(features[f"{name}_weights"])
        position = features[f"{name}_positions"][row, slot]
        restored[row, position] = features[f"{name}_ids"][row, slot]
        predicted += list(zip(row.tolist(), position.tolist(), strict=True))
    np.testing.assert_array_equal(restored, ids)
    # No token is predicted twice, and the masks are those of an example that nothing is shuffled in.
    assert len(set(predicted)) == len(predicted)
    for name in ("masked_lm_positions", "masked_lm_ids", "masked_lm_weights"):
        np.testing.assert_array_equal(features[name], plain[name])
