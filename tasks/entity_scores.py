"""Entities of tags and how many were found: precision, recall and F1 as seqeval defines them by default.

An entity counts where its type, its beginning and its end are right. A tag I-X behind O, or behind another type, begins
an entity. Macro scores are means over the types that occur in labels or answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

Scores = dict[str, float]
ENTITY_METRICS = ("f1", "macro_f1", "precision", "recall", "macro_precision", "macro_recall")
OUTSIDE = "O"


class Entity(NamedTuple):
    """A run of words of one type: `begin` is its first, `end` the one behind it."""

    type: str
    begin: int
    end: int


def entities_of(tags: Iterable[str]) -> list[Entity]:
    """Return the entities of tags `O`, `B-X`, `I-X`.

    Example:
        tags      B-P I-P O I-L I-P B-P
        entities  P 0:2, L 3:4, P 4:5, P 5:6
    """
    found: list[Entity] = []
    kind, begin, count = "", 0, 0
    for place, tag in enumerate(tags):
        prefix, _, other = tag.partition("-")
        if kind and (prefix != "I" or other != kind):
            found.append(Entity(kind, begin, place))
            kind = ""
        if not kind and tag != OUTSIDE:
            kind, begin = other, place
        count = place + 1
    return [*found, Entity(kind, begin, count)] if kind else found


def tags_of(entities: Iterable[Entity], length: int) -> tuple[list[str], int]:
    """Return the tags of `length` words, and how many entities they cannot tell because they overlap an earlier one.

    Of two that begin at the same word the longer is kept.
    """
    tags, lost = [OUTSIDE] * length, 0
    for kind, begin, end in sorted(entities, key=lambda each: (each.begin, -each.end, each.type)):
        if any(tag != OUTSIDE for tag in tags[begin:end]):
            lost += 1
            continue
        tags[begin:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - begin - 1)]
    return tags, lost


def entity_scores(labels: Sequence[Collection[Entity]], answers: Sequence[Collection[Entity]]) -> Scores:
    """Return the scores over all texts, and `f1_TYPE` for each type."""
    true, found, right = Counter[str](), Counter[str](), Counter[str]()
    for label, answer in zip(labels, answers, strict=True):
        expected, given = set(label), set(answer)
        true.update(each.type for each in expected)
        found.update(each.type for each in given)
        right.update(each.type for each in expected & given)
    types = sorted(true.keys() | found.keys())
    by_type = [_scores(right[kind], found[kind], true[kind]) for kind in types]
    micro = _scores(right.total(), found.total(), true.total())
    macro = [sum(column) / len(types) for column in zip(*by_type, strict=True)] if types else [0.0] * 3
    names = ("precision", "recall", "f1")
    scores = dict(zip(names, micro, strict=True)) | {f"macro_{n}": v for n, v in zip(names, macro, strict=True)}
    return scores | {f"f1_{kind}": each[2] for kind, each in zip(types, by_type, strict=True)}


def _scores(right: int, found: int, true: int) -> tuple[float, float, float]:
    """Return precision, recall and F1; 0 where one is undefined."""
    precision, recall = (right / number if number else 0.0 for number in (found, true))
    both = precision + recall
    return precision, recall, 2 * precision * recall / both if both else 0.0
