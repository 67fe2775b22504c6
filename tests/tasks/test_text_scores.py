"""Scores of generated text against known answers, sacrebleu, and definitions written out again."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.text_scores import (
    TEXT_METRICS,
    characters,
    copy_rate,
    corpus_bleu,
    distinct,
    longest_common_subsequence,
    rouge_l,
    rouge_n,
    text_scores,
    words,
)

TEXT = st.text(alphabet="abcd", min_size=0, max_size=9)
LONG = st.text(alphabet="abcd", min_size=4, max_size=9)  # of which there are groups of four


def test_known_answers_of_dureaders_evaluation():
    """Its own file, run once on these examples."""
    one = corpus_bleu([characters("今天天气好")], [[characters("今天天气很好")]])
    assert one == pytest.approx([0.818731, 0.709042, 0.649827, 0.578930], abs=1e-6)
    assert rouge_l(characters("今天天气好"), [characters("今天天气很好")]) == pytest.approx(0.894428, abs=1e-6)
    candidates, references = ["今天天气好", "abc d"], [["今天天气很好"], ["abcd ef", "abd"]]
    scores = text_scores(candidates, references, ["", ""], "characters")
    assert [scores[f"bleu_{n}"] for n in (1, 2, 3, 4)] == pytest.approx([1.0, 0.925820, 0.881822, 0.822267], abs=1e-6)
    assert scores["rouge_l"] == pytest.approx(0.947214, abs=1e-6)
    assert tuple(scores) == TEXT_METRICS


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(LONG, st.lists(LONG, min_size=1, max_size=2)), min_size=1, max_size=4))
def test_bleu_is_sacrebleus_where_it_is_not_smoothed(examples: list[tuple[str, list[str]]]):
    import sacrebleu

    candidates, references = [c for c, _ in examples], [[*r, *r][:2] for _, r in examples]
    metric = sacrebleu.BLEU(tokenize="none", smooth_method="none", effective_order=False)
    streams = [[" ".join(r[i]) for r in references] for i in range(2)]
    expected = metric.corpus_score([" ".join(c) for c in candidates], streams).score / 100
    assert corpus_bleu(candidates, references)[3] == pytest.approx(expected, abs=1e-3)


@settings(max_examples=60, deadline=None)
@given(TEXT, TEXT)
def test_the_longest_common_subsequence_is_that_of_all_subsequences(a: str, b: str):
    found = {"".join(part) for size in range(len(a) + 1) for part in itertools.combinations(a, size)}
    other = {"".join(part) for size in range(len(b) + 1) for part in itertools.combinations(b, size)}
    assert longest_common_subsequence(a, b) == max(len(part) for part in found & other)
    assert longest_common_subsequence(a, b) == longest_common_subsequence(b, a)


@settings(max_examples=60, deadline=None)
@given(TEXT.filter(len), TEXT)
def test_scores_lie_between_nothing_and_the_text_itself(a: str, b: str):
    for score in (
        lambda c, r: rouge_l(c, [r]),
        lambda c, r: rouge_n(c, [r], 1),
        lambda c, r: corpus_bleu([c], [[r]])[0],
    ):
        assert 0 <= score(b, a) <= 1 + 1e-9
        assert score(a, a) == pytest.approx(1.0, abs=1e-8)
    # Another reference can only help, and the order of references says nothing.
    assert rouge_l(b, [a, b]) == rouge_l(b, [b, a]) >= rouge_l(b, [a])
    assert rouge_n(b, [a, b], 2) >= rouge_n(b, [a], 2)


def test_rouge_of_words_by_hand():
    # police kill the gunman / police killed the gunman, Lin (2004): 3 of 4 words; "the gunman" of 3 pairs.
    candidate, reference = words("Police kill the gunman."), words("police killed the gunman")
    assert rouge_n(candidate, [reference], 1) == pytest.approx(0.75)
    assert rouge_n(candidate, [reference], 2) == pytest.approx(1 / 3)
    assert rouge_l(candidate, [reference]) == pytest.approx(0.75)
    assert rouge_n(candidate, [words("")], 1) == rouge_l(candidate, [[]]) == rouge_l([], [reference]) == 0.0


def test_variety_and_copying_by_hand():
    assert distinct([list("aab"), list("ab")], 1) == pytest.approx(2 / 5)
    assert distinct([list("aab"), list("ab")], 2) == pytest.approx(2 / 3)
    assert distinct([[]], 1) == copy_rate([[]], [["a"]]) == 0.0
    assert copy_rate([list("abx"), list("c")], [list("ba"), list("d")]) == pytest.approx(2 / 4)
    assert math.isclose(text_scores(["甲 乙"], [["甲乙"]], ["乙"], "characters")["copy_rate"], 0.5)
