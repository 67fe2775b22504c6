"""The scores of trivial methods against counts by hand."""

from __future__ import annotations

import pytest

from examples.floors import naive_bayes, second_text, shared_pairs
from tasks.datasets import Example


def examples(*rows: tuple[str, str, str]) -> list[Example]:
    return [Example(*row) for row in rows]


def test_naive_bayes_reads_pairs_of_characters_of_one_text():
    train = examples(("天气好", "不对", "0"), ("好天气", "对了", "1"))
    dev = examples(("气好", "对了", "0"), ("好天", "不对", "1"))
    assert naive_bayes(train, dev) == 1.0
    assert second_text(train, dev) == 0.0


def test_shared_pairs_match_from_the_threshold_on_that_is_best_on_training():
    # Shares 1, 1/3, 1/3, 0: from 1/3 on three of four are right, and the lower of two equal thresholds is taken.
    train = examples(
        ("天气好", "天气好", "1"), ("天气好", "天气坏", "1"), ("天气好", "好天气", "0"), ("天气", "下雨", "0")
    )
    dev = examples(("吃什么", "吃什么", "1"), ("吃什么", "吃什么呢", "1"), ("吃什么", "下雨了", "1"), ("a", "b", "0"))
    assert shared_pairs(train, dev) == pytest.approx(3 / 4)
    assert shared_pairs(examples(("a", "a", "0")), dev) == pytest.approx(1 / 4)
