"""Scores of generated text against references: BLEU, ROUGE, variety and copying, over characters or words.

BLEU (Papineni et al. 2002) and ROUGE-L (Lin 2004, with beta 1.2) are those of DuReader's evaluation, by which PALM and
PLUG report: corpus BLEU without smoothing, the reference length nearest to the candidate's. ROUGE-1 and ROUGE-2 are the
F1 of Lin's package. `perplexity` is the exponential of the mean loss of a token.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

Units = Sequence[str]
"""A text as its characters or words."""

_WORD = re.compile(r"\w+")
_BETA = 1.2
_LEAST_MATCHES, _LEAST_GRAMS = 1e-15, 1e-9  # DuReader's: no division by zero, no logarithm of zero
ORDERS = (1, 2, 3, 4)
TEXT_METRICS = (
    *(f"bleu_{n}" for n in ORDERS),
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "distinct_1",
    "distinct_2",
    "copy_rate",
)


def characters(text: str) -> Units:
    """Return every character but spaces; a Latin word is its letters, as in DuReader's evaluation."""
    return [character for character in text if not character.isspace()]


def words(text: str) -> Units:
    """Return the words, lower-cased; punctuation is left out, as in ROUGE's package."""
    return _WORD.findall(text.lower())


UNITS: Mapping[str, Callable[[str], Units]] = {"characters": characters, "words": words}


def text_scores(
    candidates: Sequence[str], references: Sequence[Sequence[str]], sources: Sequence[str], units: str
) -> dict[str, float]:
    """Return every score of `TEXT_METRICS`.

    Args:
        candidates: generated texts.
        references: of each candidate one or several texts.
        sources: what each candidate was generated from.
        units: a key of UNITS.
    """
    divide = UNITS[units]
    found = [divide(text) for text in candidates]
    wanted = [[divide(text) for text in texts] for texts in references]
    return {
        **{f"bleu_{n}": value for n, value in zip(ORDERS, corpus_bleu(found, wanted), strict=True)},
        "rouge_1": _mean(rouge_n(c, r, 1) for c, r in zip(found, wanted, strict=True)),
        "rouge_2": _mean(rouge_n(c, r, 2) for c, r in zip(found, wanted, strict=True)),
        "rouge_l": _mean(rouge_l(c, r) for c, r in zip(found, wanted, strict=True)),
        "distinct_1": distinct(found, 1),
        "distinct_2": distinct(found, 2),
        "copy_rate": copy_rate(found, [divide(text) for text in sources]),
    }


def corpus_bleu(candidates: Sequence[Units], references: Sequence[Sequence[Units]]) -> list[float]:
    """Return BLEU of every order of ORDERS.

    Example: candidate "a b b", reference "a b"
        matches of one word   a 1, b 1 (clipped), of 3      of two words   "a b" 1, of 2
        BLEU-2                sqrt(2/3 * 1/2) = 0.577, without a penalty: the candidate is not shorter
    """
    matches, grams, length, wanted = Counter[int](), Counter[int](), 0, 0
    for candidate, texts in zip(candidates, references, strict=True):
        length += len(candidate)
        # Of two equally near lengths the shorter one counts.
        wanted += min((abs(len(text) - len(candidate)), len(text)) for text in texts)[1]
        for n in ORDERS:
            own = _grams(candidate, n)
            most = Counter[tuple[str, ...]]()
            for text in texts:
                most |= _grams(text, n)
            matches[n] += (own & most).total()
            grams[n] += own.total()
    ratio = (length + _LEAST_MATCHES) / (wanted + _LEAST_GRAMS)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in ORDERS:
        product *= (matches[n] + _LEAST_MATCHES) / (grams[n] + _LEAST_GRAMS)
        scores.append(product ** (1 / n) * penalty)
    return scores


def rouge_n(candidate: Units, references: Sequence[Units], n: int) -> float:
    """Return the best F1 over the references of what candidate and reference have in common in groups of n."""
    own, best = _grams(candidate, n), 0.0
    for reference in references:
        other = _grams(reference, n)
        common, total = (own & other).total(), own.total() + other.total()
        best = max(best, 2 * common / total if total else 0.0)
    return best


def rouge_l(candidate: Units, references: Sequence[Units]) -> float:
    """Return the F of the longest common subsequence with recall 1.2 times as important as precision.

    Precision and recall are the best over the references, each by itself.
    """
    if not candidate or not any(references):
        return 0.0
    common = [(longest_common_subsequence(candidate, reference), len(reference)) for reference in references]
    precision = max(length for length, _ in common) / len(candidate)
    recall = max(length / size for length, size in common if size)
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def longest_common_subsequence(a: Units, b: Units) -> int:
    """Return its length, in a machine word for every row of the table (Hyyro 2004).

    Bit i of `row` is 0 where the table grows at a[i]:
        a "abcb", b "bdcb": the row ends with three zeros, "bcb"
    """
    places: dict[str, int] = {}
    for i, unit in enumerate(a):
        places[unit] = places.get(unit, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for unit in b:
        matched = row & places.get(unit, 0)
        row = (row + matched | row - matched) & full
    return len(a) - row.bit_count()


def distinct(candidates: Iterable[Units], n: int) -> float:
    """Return the share of different groups of n among all (Li et al. 2016)."""
    grams = Counter[tuple[str, ...]]()
    for candidate in candidates:
        grams += _grams(candidate, n)
    return len(grams) / grams.total() if grams else 0.0


def copy_rate(candidates: Sequence[Units], sources: Sequence[Units]) -> float:
    """Return the share of generated units that their source has too."""
    copied = total = 0
    for candidate, source in zip(candidates, sources, strict=True):
        known = set(source)
        copied += sum(unit in known for unit in candidate)
        total += len(candidate)
    return copied / total if total else 0.0


def _grams(units: Units, n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(units[i:] for i in range(n)), strict=False))


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0
