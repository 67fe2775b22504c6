import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from data.randomness import keys, permuted, random_below, random_bits, stream_number


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permuted_is_a_permutation(size, key):
    assert np.array_equal(np.sort(permuted(np.arange(size), size, key)), np.arange(size))


def test_permutation_is_unlike_the_identity_and_unlike_that_of_the_next_key():
    one, two = (permuted(np.arange(10000), 10000, key) for key in (1, 2))
    for a, b in ((one, np.arange(10000)), (one, two), (one[1:], one[:-1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.04


@given(st.integers(-(2**63), 2**64), st.integers(0, 2**32))
def test_keys_depend_on_every_coordinate_and_on_their_order(a, b):
    assert keys(a, b) == keys(a, b)
    assert keys(a, b) != keys(a, b + 1)
    assert keys(a, b) != keys(a + 1, b)
    assert keys(a, b) != keys(a)


def test_rows_do_not_depend_on_their_neighbours():
    key = keys(7, np.arange(100))
    np.testing.assert_array_equal(random_bits(key, 9, 3)[40:50], random_bits(key[40:50], 9, 3))


def test_draws_are_uniform_along_rows_columns_and_streams():
    matrix = random_bits(keys(1, np.arange(400)), 500, stream_number("x"))
    other = random_bits(keys(1, np.arange(400)), 500, stream_number("y"))
    for sample in (matrix[0], matrix[:, 0], matrix.ravel()[:10000], (matrix ^ other).ravel()[:10000]):
        assert stats.kstest(sample / 2**32, "uniform").pvalue > 1e-4
    for a, b in ((matrix[:, :-1], matrix[:, 1:]), (matrix[:-1], matrix[1:]), (matrix, other)):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.01
    for bit in range(32):
        assert abs(((matrix >> np.uint32(bit)) & 1).mean() - 0.5) < 0.005


def test_random_below_fills_its_range_evenly():
    draws = random_below(random_bits(keys(np.arange(2000)), 10, 0), 7)
    assert stats.chisquare(np.bincount(draws.ravel(), minlength=7)).pvalue > 1e-4
    assert draws.max() == 6
