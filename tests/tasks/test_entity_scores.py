"""Scores of entities: seqeval's numbers on random tags, worked by hand, and a definition of its own."""

from __future__ import annotations

import random
import re

import pytest

from tasks.entity_scores import Entity, entities_of, entity_scores, tags_of

TAGS = ["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]
# seqeval 1.2.2 on `random_tags(seed)`: precision, recall and F1, micro and macro.
SEQEVAL = {
    0: (0.7857142857, 0.6875, 0.7333333333, 0.775, 0.6891534392, 0.723125215),
    1: (0.7777777778, 0.6176470588, 0.6885245902, 0.7362637363, 0.5851851852, 0.6509103641),
    2: (0.8333333333, 0.9375, 0.8823529412, 0.8214285714, 0.9166666667, 0.8611111111),
    3: (0.6885245902, 0.7368421053, 0.7118644068, 0.7051851852, 0.7424242424, 0.7164983165),
    4: (0.6585365854, 0.675, 0.6666666667, 0.6400584795, 0.6507724302, 0.6441798942),
    5: (0.737704918, 0.7627118644, 0.75, 0.749194847, 0.7735507246, 0.7494788409),
    6: (0.64, 0.6666666667, 0.6530612245, 0.6626984127, 0.6777777778, 0.6676767677),
    7: (0.6904761905, 0.725, 0.7073170732, 0.6938131313, 0.7373251748, 0.7077991453),
}
NAMES = ("precision", "recall", "f1", "macro_precision", "macro_recall", "macro_f1")


def random_tags(seed: int) -> tuple[list[list[str]], list[list[str]]]:
    """Texts of random tags, and the same with a third of the tags drawn anew."""
    r = random.Random(seed)
    texts = [[r.choice(TAGS) for _ in range(r.randint(1, 12))] for _ in range(r.randint(3, 20))]
    return texts, [[r.choice(TAGS) if r.random() < 0.3 else tag for tag in text] for text in texts]


@pytest.mark.parametrize("seed", SEQEVAL)
def test_scores_are_those_of_seqeval(seed: int):
    labels, answers = ([entities_of(tags) for tags in texts] for texts in random_tags(seed))
    scores = entity_scores(labels, answers)
    assert [scores[name] for name in NAMES] == pytest.approx(SEQEVAL[seed], abs=1e-9)


def by_expression(tags: list[str]) -> list[Entity]:
    """The same entities another way: each type by itself, as a run of letters in which B begins anew."""
    found = []
    for kind in {tag[2:] for tag in tags if tag != "O"}:
        letters = "".join(tag[0] if tag[2:] == kind else "O" for tag in tags)
        found += [Entity(kind, m.start(), m.end()) for m in re.finditer(r"BI*|I+", letters)]
    return sorted(found, key=lambda each: each.begin)


@pytest.mark.parametrize("seed", range(40))
def test_entities_by_another_definition(seed: int):
    for text in random_tags(seed)[0]:
        assert entities_of(text) == by_expression(text)
        again, lost = tags_of(entities_of(text), len(text))
        assert lost == 0
        assert entities_of(again) == entities_of(text)


def test_scores_by_hand():
    labels = [[Entity("PER", 0, 2), Entity("LOC", 3, 5)], []]
    answers = [[Entity("PER", 0, 2), Entity("LOC", 3, 4)], [Entity("ORG", 0, 1)]]
    scores = entity_scores(labels, answers)
    assert scores["precision"] == pytest.approx(1 / 3)
    assert scores["recall"] == pytest.approx(1 / 2)
    assert scores["f1"] == pytest.approx(0.4)
    assert scores["macro_f1"] == pytest.approx(1 / 3)  # PER 1, LOC 0, ORG 0
    assert {name: scores[f"f1_{name}"] for name in ("PER", "LOC", "ORG")} == {"PER": 1.0, "LOC": 0.0, "ORG": 0.0}
    assert entity_scores([[]], [[]])["f1"] == 0.0


def test_of_entities_that_overlap_the_first_and_longest_are_told():
    tags, lost = tags_of([Entity("A", 1, 2), Entity("B", 0, 3), Entity("C", 3, 4)], 5)
    assert tags == ["B-B", "I-B", "I-B", "B-C", "O"]
    assert lost == 1
