"""Exact match and F1 of answers that are cut from a text, by the rules of SQuAD, of CMRC 2018 and of MLQA.

Facts of the official scripts (rajpurkar/SQuAD-explorer evaluate-v2.0, cmrc2018_evaluate v5, mlqa_evaluation_v1); CMRC's
calls nltk for what is neither Chinese nor of its list of punctuation. Here such runs are cut at spaces and around the
punctuation that nltk sets apart; they differ in English contractions ("don't"), quotes and ends of sentences.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Scores = dict[str, float]
SPAN_METRICS = ("f1", "exact_match")

_CHINESE = re.compile("[\u4e00-\u9fa5]")
_CMRC_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")  # "……" of its list is no character
_APART = r";@#$%&?!()\[\]{}<>\""
_LATIN_WORD = re.compile(rf"\.\.\.|[{_APART}]|,(?!\d)|(?:[^\s.,{_APART}]|,(?=\d)|\.(?!\.\.|\s*$))+|\.")
_ASCII_PUNCTUATION = frozenset(string.punctuation)
_ENGLISH_ARTICLES = re.compile(r"\b(a|an|the)\b")
_MLQA_ARTICLES: Mapping[str, re.Pattern[str] | None] = {
    "en": _ENGLISH_ARTICLES,
    "es": re.compile(r"\b(un|una|unos|unas|el|la|los|las)\b"),
    "de": re.compile(r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b"),
    "vi": re.compile(r"\b(của|là|cái|chiếc|những)\b"),
    "ar": re.compile(r"\sال^|ال"),
    "hi": None,
    "zh": None,
}


@dataclass(frozen=True)
class Scoring:
    """Rules by which an answer is compared with one that is right.

    Attributes:
        normalized: text -> what exact match compares.
        tokens: text -> what F1 compares.
        common: two lists of tokens -> how many they have in common.
    """

    normalized: Callable[[str], str]
    tokens: Callable[[str], list[str]]
    common: Callable[[Sequence[str], Sequence[str]], int]

    def exact(self, answer: str, right: str) -> float:
        """Return 1 where both are the same, else 0."""
        return float(self.normalized(answer) == self.normalized(right))

    def f1(self, answer: str, right: str) -> float:
        """Return the harmonic mean of the shares of common tokens; where a side has none, whether both have none."""
        given, expected = self.tokens(answer), self.tokens(right)
        if not given or not expected:
            return float(given == expected)
        common = self.common(given, expected)
        return 2 * common / (len(given) + len(expected))


def _overlap(given: Sequence[str], expected: Sequence[str]) -> int:
    return (Counter(given) & Counter(expected)).total()


def longest_common_run(given: Sequence[str], expected: Sequence[str]) -> int:
    """Return the length of the longest run of tokens that both have.

    Example:
        a b c d, b c x d    2: b c
    """
    best, row = 0, [0] * (len(expected) + 1)
    for token in given:
        row = [0, *(before + 1 if token == other else 0 for before, other in zip(row, expected, strict=False))]
        best = max(best, *row)
    return best


def _squad_words(text: str) -> list[str]:
    kept = "".join([c for c in text.lower() if c not in _ASCII_PUNCTUATION])
    return _ENGLISH_ARTICLES.sub(" ", kept).split()


def _cmrc_text(text: str) -> str:
    return "".join([c for c in text.lower().strip() if c not in _CMRC_PUNCTUATION])


def _cmrc_tokens(text: str) -> list[str]:
    """A token is a Chinese character or a word of anything else; punctuation is dropped without cutting there."""
    return _by_character(_cmrc_text(text), _LATIN_WORD.findall, lambda c: bool(_CHINESE.match(c)))


def _by_character(text: str, words: Callable[[str], list[str]], alone: Callable[[str], bool]) -> list[str]:
    found, run = [], ""
    for character in [*text, ""]:
        if character and not alone(character):
            run += character
            continue
        found += [*words(run), *character]
        run = ""
    return found


def _mlqa(language: str) -> Scoring:
    articles = _MLQA_ARTICLES[language]

    def is_punctuation(character: str) -> bool:
        return character in _ASCII_PUNCTUATION or unicodedata.category(character).startswith("P")

    def words(text: str) -> list[str]:
        kept = "".join([c for c in text.lower() if not is_punctuation(c)])
        kept = articles.sub(" ", kept) if articles else kept
        return _by_character(kept, str.split, lambda c: bool(_CHINESE.match(c))) if language == "zh" else kept.split()

    return Scoring(lambda text: " ".join(words(text)), words, _overlap)


_SQUAD = Scoring(lambda text: " ".join(_squad_words(text)), _squad_words, _overlap)
_CMRC = Scoring(_cmrc_text, _cmrc_tokens, longest_common_run)
SCORINGS: Mapping[str, Scoring] = {
    "squad": _SQUAD,
    "cmrc": _CMRC,
    "drcd": _CMRC,
    **{f"mlqa_{language}": _mlqa(language) for language in _MLQA_ARTICLES},
}
"""The rules that a row of datasets.toml may name; XQuAD is scored by those of SQuAD in every language."""


def compared(scoring: Scoring, answer: str, right: Sequence[str]) -> tuple[float, float]:
    """Return exact match and F1 with the nearest of the right answers; without any, the right one is no text.

    Right answers of which nothing is left without punctuation and articles do not count beside others.
    """
    golds = [text for text in right if scoring.normalized(text)] or [""]
    return max(scoring.exact(answer, gold) for gold in golds), max(scoring.f1(answer, gold) for gold in golds)


def span_scores(scoring: Scoring, answers: Sequence[str], right: Sequence[Sequence[str]]) -> Scores:
    """Return the means of exact match and F1; where questions have no answer, also those of either sort of question."""
    found = [compared(scoring, answer, golds) for answer, golds in zip(answers, right, strict=True)]
    scores = _means(found, "")
    if not all(right):
        scores |= _means([pair for pair, golds in zip(found, right, strict=True) if golds], "has_answer_")
        scores |= _means([pair for pair, golds in zip(found, right, strict=True) if not golds], "no_answer_")
    return scores


def _means(found: Sequence[tuple[float, float]], prefix: str) -> Scores:
    columns = zip(*found, strict=True) if found else ((0.0,), (0.0,))
    return {f"{prefix}{name}": sum(c) / len(c) for name, c in zip(("exact_match", "f1"), columns, strict=True)}


def best_thresholds(
    scoring: Scoring, texts: Sequence[str], differences: Sequence[float], right: Sequence[Sequence[str]]
) -> Scores:
    """Return the best that a threshold on the difference of scores can give, and that threshold, for both metrics.

    A question is answered where its difference is at most the threshold. The threshold is chosen on the very answers
    that are scored, so that this is no result but an upper bound, and a threshold for other data.

    Args:
        scoring: the rules.
        texts: the best answer to each question that is a text.
        differences: score of no answer less that of the text.
        right: of each question.
    """
    order = sorted(range(len(texts)), key=lambda i: differences[i])
    scores: Scores = {}
    for place, name in enumerate(("exact_match", "f1")):
        total = float(sum(not golds for golds in right))
        best, threshold = total, (differences[order[0]] - 1 if order else 0.0)
        for rank, i in enumerate(order):
            total += compared(scoring, texts[i], right[i])[place] - (not right[i])
            last = rank + 1 == len(order) or differences[order[rank + 1]] > differences[i]
            if last and total > best:
                best, threshold = total, differences[i]
        scores |= {f"best_{name}": best / max(len(texts), 1), f"best_{name}_threshold": float(threshold)}
    return scores
