"""Running text -> sentences, Chinese or English."""

from __future__ import annotations

import re
from collections.abc import Iterator

from data.corpus import limits

_LATIN_CLOSING = "\"'”’»）)\\]"
_CLOSING = f"{_LATIN_CLOSING}」』】》〉"
# Linear in the text: a run of marks is entered at its first mark only, and no quantifier gives back what it took.
# Closing marks of the Chinese blocks are therefore not among those between a mark and a Chinese character.
_SENTENCE_END = re.compile(
    rf"""(?: [。！？｡]++                              # ends a Chinese or Japanese sentence anywhere
           | … (?<!……) …*+ (?=[{_CLOSING}])
           | [!?] (?<![!?]{{2}}) [!?]*+ (?=[{_LATIN_CLOSING}]*+(?:\s|[\u2E80-\u9FFF\uF900-\uFAFF]))
           | \. (?: (?<!\.\.)(?<!\b[A-Za-z]\.) | (?<=\b[A-Za-z]\.\.) ) \.*+   # not after an initial,
             (?=[{_CLOSING}]*+\s++[^\sa-z])                                  # not before a lower-case word
         ) [{_CLOSING}]*+""",
    re.VERBOSE,
)
_ABBREVIATION = re.compile(
    r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|Gen|Col|Capt|Lt|Sgt|Rev|Hon|Gov|Sen|Rep|vs|etc|e\.g|i\.e|cf|No|Nos|Vol|pp|Fig|Eq|"
    r"approx|Inc|Ltd|Co|Corp|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.$"
)


def split_sentences(text: str) -> list[str]:
    """Split running text, Chinese or English, into stripped sentences; nothing but white space is lost.

    Line ends separate. A full stop ends a sentence before white space and anything but a lower-case letter, unless it
    ends an abbreviation or an initial.
    """
    sentences: list[str] = []
    for line in text.split("\n"):
        start = 0
        for end in _SENTENCE_END.finditer(line):
            if end.group().startswith(".") and _ABBREVIATION.search(line, max(start, end.start() - 8), end.start() + 1):
                continue
            sentences.append(line[start : end.end()].strip())
            start = end.end()
        sentences.append(line[start:].strip())
    return [sentence for sentence in sentences if sentence]


def short_sentences(text: str) -> Iterator[str]:
    """Split an overlong line at its sentences, and overlong sentences at a space or, without one, anywhere."""
    for sentence in split_sentences(text):
        start, size = 0, len(sentence)
        while size - start > limits.MAX_LINE_CHARACTERS:
            full = start + limits.MAX_LINE_CHARACTERS
            cut = sentence.rfind(" ", start + limits.MAX_LINE_CHARACTERS // 2, full)
            cut = full if cut < 0 else cut
            yield sentence[start:cut].rstrip()
            start = cut
            while start < size and sentence[start].isspace():
                start += 1
        yield sentence[start:]
