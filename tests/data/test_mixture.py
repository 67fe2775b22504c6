"""Laws of mixtures: shares are kept to within a batch, every member's batches come in order, nothing is stored."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st

from data.mixture import MAX_CYCLE_STEPS, Marked, Mixture, mark_of, marked, unmarked


class Numbered:
    """A dataset whose batch tells its name and number."""

    def __init__(self, name: str, num_examples: int = 3):
        self.name, self.num_examples = name, num_examples

    def batch(self, step: int) -> dict[str, Any]:
        return {"name": self.name, "number": step}


def mixture(shares, seed=0):
    return Mixture({f"d{i}": (Numbered(f"d{i}"), share) for i, share in enumerate(shares)}, seed)


several_shares = st.lists(
    st.integers(1, 12) | st.sampled_from([0.1, 0.3, 0.7, 1 / 3, 0.25, 2.5]), min_size=1, max_size=5
)


@settings(max_examples=60, deadline=None)
@given(several_shares, st.integers(0, 2**40))
def test_shares_are_kept_within_one_batch_at_every_prefix_and_batches_come_in_order(shares, seed):
    mixed = mixture(shares, seed)
    counts = Counter()
    for step in range(200):
        batch = mixed.batch(step)
        assert batch["number"] == counts[batch["name"]]
        counts[batch["name"]] += 1
        # Tijdeman's bound, which no order can always better.
        most = 1 - Fraction(1, max(2 * len(shares) - 2, 1))
        assert all(abs(counts[name] - share * (step + 1)) <= most for name, share in mixed.shares.items())


@settings(max_examples=30, deadline=None)
@given(several_shares, st.integers(0, 2**40), st.integers(0, 10**9))
def test_batch_is_a_function_of_the_step(shares, seed, step):
    one, two = mixture(shares, seed), mixture(shares, seed)
    one.batch(step // 2)
    assert one.batch(step) == two.batch(step)
    # Far from the beginning too, batches of a member follow one another.
    name, number = one.at(step)
    after = next(s for s in range(step + 1, step + 1 + 2 * MAX_CYCLE_STEPS) if one.at(s)[0] == name)
    assert one.at(after)[1] == number + 1


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=4))
@settings(max_examples=20, deadline=None)
def test_shares_are_those_asked_for(shares):
    mixed = mixture(shares)
    assert sum(mixed.shares.values()) == 1
    for i, share in enumerate(shares):
        assert abs(mixed.shares[f"d{i}"] - Fraction(share) / sum(map(Fraction, shares))) < Fraction(4, MAX_CYCLE_STEPS)
    assert mixture([1, 3]).shares == {"d0": Fraction(1, 4), "d1": Fraction(3, 4)}
    assert mixture([0.7, 0.3]).shares == {"d0": Fraction(7, 10), "d1": Fraction(3, 10)}


def test_the_seed_decides_between_equal_claims():
    assert len({mixture([1, 1, 1], seed).at(0)[0] for seed in range(20)}) == 3


def test_examples_are_those_of_all_members_and_shares_are_checked():
    assert Mixture({"a": (Numbered("a", 4), 1), "b": (Numbered("b", 5), 2)}).num_examples == 9
    for shares in ([], [1, 0], [1, -1], [float("nan")], [float("inf")]):
        with pytest.raises(UsageError, match="a mixture needs datasets with shares above 0"):
            mixture(shares)


def test_a_mixture_of_two_datasets_of_other_features_keeps_each_ones():
    class Zeros:
        num_examples = 2

        def __init__(self, name: str):
            self.name = name

        def batch(self, step: int) -> dict[str, np.ndarray]:
            return {self.name: np.full(2, step, np.int32)}

    mixed = Mixture({"mono": (Zeros("input_ids"), 2), "parallel": (Zeros("source_ids"), 1)}, seed=1)
    keys = [next(iter(mixed.batch(step))) for step in range(6)]
    assert Counter(keys) == {"input_ids": 4, "source_ids": 2}


@settings(max_examples=15, deadline=None)
@given(several_shares, st.integers(0, 2**40))
def test_no_member_has_more_steps_in_a_row_than_is_said_and_one_has_as_many(shares, seed):
    mixed = mixture(shares, seed)
    turns, runs = (
        [mixed.at(step)[0] for step in range(3 * math.lcm(*(share.denominator for share in mixed.shares.values())))],
        [1],
    )
    for before, after in itertools.pairwise(turns):
        runs.append(runs[-1] + 1 if before == after else 1)
    if len(shares) > 1:
        assert max(runs) == mixed.longest_turn


def test_a_marked_batch_says_of_which_member_it_is_and_is_the_same_otherwise():
    batch = {"x": np.arange(6).reshape(2, 3)}
    one, other = marked(batch, "a"), marked(batch, "b")
    assert one.keys() != other.keys()
    assert (mark_of(one), mark_of(other), mark_of(batch)) == ("a", "b", "")
    assert {len(value) for value in one.values()} == {2}
    assert unmarked(one) == ("a", batch)
    assert unmarked(batch) == ("", batch)
    dataset = Marked(Mixture({"z": (Numbered("z"), 1)}), "a")
    assert dataset.num_examples == 3
