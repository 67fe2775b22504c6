"""Sentences: equal to the rules written as plain loops, and in steps that grow as the text does."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.corpus import limits, sentences, split_sentences
from data.corpus.sentences import _ABBREVIATION, short_sentences
from data.tokenizers.wordpiece import WordPieceTokenizer, split_words

CLOSING = "\"'”’»」』）)】》〉]"
ODD = "aA.!?…。！ \"')」』》]”x中. \u3000\tM r\n"


def naive_end(line: str, at: int) -> int:
    """Return the end of the sentence end that begins at `at`, trying every length of every run; 0 if there is none."""

    def run(start: int, characters: str) -> int:
        while start < len(line) and line[start] in characters:
            start += 1
        return start

    def followed(start: int, accepts: Callable[[int], bool]) -> bool:
        return any(accepts(place) for place in range(start, run(start, CLOSING) + 1))

    def before_chinese_or_space(place: int) -> bool:
        return re.match(r"\s|[\u2E80-\u9FFF\uF900-\uFAFF]", line[place:]) is not None

    def before_a_beginning(place: int) -> bool:
        return re.match(r"\s+[^\sa-z]", line[place:]) is not None

    character = line[at]
    if character in "。！？｡":
        return run(run(at, "。！？｡"), CLOSING)
    for characters, accepts in (("…", None), ("!?", before_chinese_or_space), (".", before_a_beginning)):
        if character not in characters or (character == "." and re.search(r"\b[A-Za-z]$", line[:at] or "  ")):
            continue
        for end in range(run(at, characters), at, -1):
            if followed(end, accepts) if accepts else line[end : end + 1] in (*CLOSING,):
                return run(end, CLOSING)
    return 0


def naive_sentences(text: str) -> list[str]:
    found = []
    for line in text.split("\n"):
        start = at = 0
        while at < len(line):
            end = naive_end(line, at)
            if not end:
                at += 1
                continue
            if not (line[at] == "." and _ABBREVIATION.search(line, max(start, at - 8), at + 1)):
                found.append(line[start:end])
                start = end
            at = end
        found.append(line[start:])
    return [sentence.strip() for sentence in found if sentence.strip()]


@settings(max_examples=400)
@given(st.text(ODD, max_size=24))
def test_sentences_are_those_of_the_rules_read_one_by_one(text: str):
    assert split_sentences(text) == naive_sentences(text)


@given(st.text("a 。.", max_size=60))
def test_short_sentences_are_those_cut_one_by_one(text: str):
    expected = []
    for sentence in split_sentences(text):
        rest = sentence
        while len(rest) > 9:
            cut = rest.rfind(" ", 4, 9)
            cut = cut if cut >= 0 else 9
            expected.append(rest[:cut].rstrip())
            rest = rest[cut:].lstrip()
        expected.append(rest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "MAX_LINE_CHARACTERS", 9)
        assert list(short_sentences(text)) == expected


def test_no_quantifier_of_the_splitter_gives_back_what_it_took():
    """With the marks before a run looked at, this makes it linear: no mark is passed over more than twice."""
    without_classes = re.sub(r"\[(?:\\.|[^\]\\])*\]", "", sentences._SENTENCE_END.pattern)
    assert re.findall(r"(?<!\()[*+?]+", without_classes) == ["++", "*+", "*+", "*+", "*+", "*+", "++", "*+"]


@pytest.mark.parametrize("unit", ["!", "?", "…", ".", "!)", "!」", " .", "…a", "A."])
def test_a_quarter_of_a_million_marks(unit: str):
    """Without a clock: for a splitter that is not linear this is minutes."""
    line = unit * (250_000 // len(unit))
    assert "".join(short_sentences(line)).replace(" ", "") == line.replace(" ", "")


@pytest.mark.parametrize("character", ["a", "é", "Σ"])
def test_a_word_of_a_hundred_thousand_letters(character: str):
    """Without a clock: it is minutes where letters are joined one by one, or where a run is walked for each sigma."""
    tokenizer = WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"])
    assert tokenizer.encode(character * 100_000) == [1]


def test_words_join_letters_and_set_punctuation_apart():
    assert split_words("ab-c", do_lower_case=True) == [("ab", [0, 1]), ("-", [2]), ("c", [3])]
