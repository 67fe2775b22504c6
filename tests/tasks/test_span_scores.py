"""Exact match and F1 of answers: worked by hand for each set of rules, derived anew, and thresholds by brute force."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

import pytest

from tasks.span_scores import SCORINGS, best_thresholds, compared, longest_common_run, span_scores

KNOWN = [
    # SQuAD: case, articles, punctuation and spaces make no difference; F1 counts words.
    ("squad", "The  Eiffel Tower!", ["eiffel tower"], 1, 1),
    ("squad", "tall Eiffel Tower", ["the Eiffel tower"], 0, 2 * (2 / 3) * 1 / (2 / 3 + 1)),
    ("squad", "Paris", ["London", "Paris, France"], 0, 2 / 3),
    ("squad", "", [], 1, 1),
    ("squad", "Paris", [], 0, 0),
    ("squad", "", ["Paris"], 0, 0),
    ("squad", "the", ["a"], 1, 1),  # nothing is left of either
    ("squad", "x", ["the", "x"], 1, 1),
    ("squad", "北京 大学", ["北京大学"], 0, 0),  # of Chinese only spaces are known
    # CMRC: a token is a character, or a word of other writing; F1 counts the longest run that both have.
    ("cmrc", "北京大学。", ["北京大学"], 1, 1),
    ("cmrc", "在北京的大学", ["北京大学"], 0, 2 * 2 / (6 + 4)),
    ("cmrc", "NBA 2K", ["nba2k"], 0, 0),
    ("cmrc", "第1届", ["第1届", "一"], 1, 1),
    ("cmrc", "a-b", ["ab"], 1, 1),  # "-" is dropped without cutting there
    ("cmrc", "78.1%", ["78.1"], 0, 2 * 1 / (2 + 1)),
    ("cmrc", "……北京", ["…北京"], 0, 2 * 2 / (3 + 3)),  # the list's "……" is two characters, and so never dropped
    ("cmrc", "30℃, 1,000 u.s. army.", ["30℃ ， 1,000 u.s. army."], 0, 2 * 4 / (6 + 5)),
    ("drcd", "臺灣大學", ["臺灣"], 0, 2 * 2 / (4 + 2)),
    # MLQA: articles by language, all of Unicode's punctuation, Chinese by character.
    ("mlqa_es", "la «casa»", ["casa"], 1, 1),
    ("mlqa_en", "la casa", ["casa"], 0, 2 / 3),
    ("mlqa_de", "der Turm", ["einen Turm"], 1, 1),
    ("mlqa_zh", "北京 大学", ["北京大学"], 1, 1),
    ("mlqa_zh", "京北大学", ["北京大学"], 0, 1),  # a bag of characters, unlike CMRC
    ("mlqa_vi", "cái nhà", ["nhà"], 1, 1),
    ("mlqa_hi", "घर।", ["घर"], 1, 1),
]


@pytest.mark.parametrize(("rules", "answer", "right", "exact", "f1"), KNOWN)
def test_known_answers(rules: str, answer: str, right: list[str], exact: float, f1: float):
    assert compared(SCORINGS[rules], answer, right) == pytest.approx((exact, f1))


def common_run_by_slices(a: Sequence[str], b: Sequence[str]) -> int:
    """Every slice of one, looked for in the other."""
    slices = {tuple(b[i:j]) for i in range(len(b)) for j in range(i, len(b) + 1)} | {()}
    return max(j - i for i in range(len(a) + 1) for j in range(i, len(a) + 1) if tuple(a[i:j]) in slices)


def cmrc_by_states(answer: str, right: str) -> tuple[float, float]:
    """CMRC's rules once more, for texts of Chinese, ASCII letters, spaces and listed punctuation."""

    def tokens(text: str) -> list[str]:
        found: list[str] = []
        inside = False
        for character in "".join(c for c in text.lower().strip() if c not in "，。：-"):
            if "\u4e00" <= character <= "\u9fa5":
                found.append(character)
                inside = False
            elif character == " ":
                inside = False
            elif inside:
                found[-1] += character
            else:
                found.append(character)
                inside = True
        return found

    a, b = tokens(answer), tokens(right)
    exact = "".join(c for c in answer.lower().strip() if c not in "，。：-")
    same = exact == "".join(c for c in right.lower().strip() if c not in "，。：-")
    run = common_run_by_slices(a, b)
    precision, recall = run / len(a) if a else 0, run / len(b) if b else 0
    return float(same), 2 * precision * recall / (precision + recall) if run else 0.0


def test_cmrc_by_another_definition():
    r = random.Random(0)
    for _ in range(400):
        answer, right = ("".join(r.choices("北京大，。：- aBc", k=r.randint(1, 9))) for _ in range(2))
        if right.strip("，。：- ") and answer.strip("，。：- "):
            assert compared(SCORINGS["cmrc"], answer, [right]) == pytest.approx(cmrc_by_states(answer, right)), (
                answer,
                right,
            )


def test_squad_f1_is_the_overlap_of_bags():
    r = random.Random(1)
    for _ in range(200):
        a, b = (r.choices("pqrs", k=r.randint(1, 6)) for _ in range(2))
        rest, common = list(b), 0
        for word in a:
            if word in rest:
                rest.remove(word)
                common += 1
        expected = 2 * common / (len(a) + len(b))
        assert SCORINGS["squad"].f1(" ".join(a), " ".join(b)) == pytest.approx(expected)
        assert longest_common_run(a, b) == common_run_by_slices(a, b)


def test_questions_without_answer_are_told_apart():
    scores = span_scores(SCORINGS["squad"], ["Paris", "", "x", ""], [["Paris"], ["London"], [], []])
    assert (scores["exact_match"], scores["f1"]) == (0.5, 0.5)
    assert (scores["has_answer_exact_match"], scores["no_answer_exact_match"]) == (0.5, 0.5)
    assert set(span_scores(SCORINGS["squad"], ["x"], [["x"]])) == {"exact_match", "f1"}


def score_at(texts: list[str], differences: list[float], right: list[list[str]], name: str, threshold: float) -> float:
    given = [t if d <= threshold else "" for t, d in zip(texts, differences, strict=True)]
    return span_scores(SCORINGS["squad"], given, right)[name]


def test_the_best_threshold_is_that_of_all_thresholds():
    r = random.Random(2)
    for _ in range(60):
        number = r.randint(1, 9)
        right = [[] if r.random() < 0.4 else ["p q"] for _ in range(number)]
        texts = [r.choice(["p q", "p", "r"]) for _ in range(number)]
        differences = [float(r.randint(-3, 3)) for _ in range(number)]
        found = best_thresholds(SCORINGS["squad"], texts, differences, right)
        for name in ("exact_match", "f1"):
            at = functools.partial(score_at, texts, differences, right, name)
            assert found[f"best_{name}"] == pytest.approx(max(at(each) for each in range(-5, 5)))
            assert at(found[f"best_{name}_threshold"]) == pytest.approx(found[f"best_{name}"])
