"""Tests of data.lengths: against all choices of lengths, one after the other."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data.labelled import ClassificationDataset, EncodedExamples
from data.lengths import count_of_lengths, longest_of_batches, padded_lengths
from ground.ragged import bounds_of


def padding(longest: np.ndarray, lengths: tuple[int, ...]) -> int:
    return sum(next(length for length in lengths if length >= each) - each for each in longest.tolist())


def test_worked_examples():
    longest = np.array([10, 11, 12, 29, 30, 61])
    assert padded_lengths(longest, 2, 64) == (32, 64)
    assert padded_lengths(longest, 3, 64) == (12, 32, 64)
    assert longest_of_batches(np.array([3, 9, 5, 7]), 2).tolist() == [5, 9]
    assert padded_lengths(longest[:0], 3, 64) == (64,)


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 4), st.integers(30, 33))
def test_no_other_choice_pads_less(longest: list[int], count: int, most: int):
    found = padded_lengths(np.sort(longest), count, most)
    assert len(found) <= count
    candidates = sorted({min(most, -(-each // 4) * 4) for each in longest})
    every = [
        (*shorter, candidates[-1])
        for size in range(count)
        for shorter in itertools.combinations(candidates[:-1], min(size, len(candidates) - 1))
    ]
    assert padding(np.sort(longest), found) == min(padding(np.sort(longest), each) for each in every)


@settings(deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=200), st.integers(1, 5))
def test_a_data_set_has_few_lengths_and_each_holds_its_batches(lengths: list[int], batch_size: int):
    splits = bounds_of(lengths)
    ids = np.ones(splits[-1], np.int32)
    examples = EncodedExamples(ids, ids, splits, np.zeros(len(lengths), np.int32))
    dataset = ClassificationDataset(examples, batch_size, 64)
    assert len(dataset.lengths) <= count_of_lengths(dataset.steps_per_epoch)
    for step in range(dataset.steps_per_epoch):
        batch = dataset.batch(step)
        assert batch["input_ids"].shape[1] in dataset.lengths
