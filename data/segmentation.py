"""Word boundaries over tokens, for whole-word masking: a Chinese segmenter's, the tokenizer's own for all else.

albert_zh looks segmented words up in a set, up to three tokens long, at any place; here the segmenter's
character offsets are aligned with those of the tokens, so words of any length stay whole and only where they are words.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import accumulate

import numpy as np
from absl.app import UsageError

from data.tokenizers import Encoding
from data.tokenizers.wordpiece import is_ideograph, is_punctuation

SEGMENTERS = ("rjieba", "jieba", "none")
_UNKNOWN, _LETTER, _IDEOGRAPH, _PUNCTUATION, _BLANK = range(5)
# Filled as characters are met; zero pages cost nothing until then.
_KIND_OF = np.zeros(0x110000, np.uint8)


def segmenter_version(segmenter: str) -> str:
    """Return e.g. 'rjieba 0.2.2', for manifests: versions differ in a few words of a hundred lines."""
    _check(segmenter)
    return "none" if segmenter == "none" else f"{segmenter} {importlib.metadata.version(segmenter)}"


def word_starts(texts: Sequence[str], encoding: Encoding, *, segmenter: str = "rjieba") -> np.ndarray:
    """Return bool [N]: whether each token of `encoding`, which is that of `texts`, begins a word.

    Ideographs: where the segmenter begins a word, and after anything else. Punctuation: always. All else (Latin words,
    numbers, kana): where the tokenizer's own mark says so, and after ideographs and punctuation. A text's first token
    begins a word; the token after a lone SentencePiece '▁' does not. With segmenter "none" each ideograph is a word.

    Args:
        texts: T texts.
        encoding: of those texts, N tokens.
        segmenter: "rjieba" (Rust, the default), "jieba" (the Python original, 17 times slower) or "none".

    Raises:
        UsageError: the segmenter is not one of these, or not installed.
    """
    _check(segmenter)
    joined = "\n".join(texts)
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    bases = np.repeat(np.cumsum(lengths + 1) - (lengths + 1), np.diff(encoding.splits))
    first = encoding.starts + bases
    last = encoding.ends + bases - 1

    # An empty span (SentencePiece's '▁' where the text has no space) is blank at any place.
    empty = last < first
    first_kind = np.where(empty, _BLANK, _kinds(codes[np.minimum(first, len(codes) - 1)]))
    last_kind = np.where(empty, _BLANK, _kinds(codes[last]))

    previous_kind = np.full(len(first), _LETTER, np.uint8)
    previous_kind[1:] = last_kind[:-1]
    is_ideograph_token = first_kind == _IDEOGRAPH
    starts = ~encoding.continuation | (previous_kind == _IDEOGRAPH) | (previous_kind == _PUNCTUATION)
    starts |= (first_kind == _PUNCTUATION) | is_ideograph_token
    if segmenter != "none" and is_ideograph_token.any():
        boundary = np.zeros(len(codes) + 1, bool)
        boundary[_word_offsets(joined, segmenter)] = True
        inside = is_ideograph_token & (previous_kind == _IDEOGRAPH) & ~boundary[first]
        starts[inside] = False
    starts[previous_kind == _BLANK] = False
    starts[encoding.splits[:-1][np.diff(encoding.splits) > 0]] = True
    return starts


def _check(segmenter: str) -> None:
    if segmenter not in SEGMENTERS:
        raise UsageError(f"segmenter {segmenter!r} is not known; choose one of {', '.join(SEGMENTERS)}")


def _kinds(codes: np.ndarray) -> np.ndarray:
    kinds = _KIND_OF[codes]
    if not kinds.all():
        for code in np.unique(codes[kinds == _UNKNOWN]).tolist():
            _KIND_OF[code] = _kind(chr(code))
        kinds = _KIND_OF[codes]
    return kinds


def _kind(character: str) -> int:
    if is_ideograph(character):
        return _IDEOGRAPH
    if is_punctuation(character):
        return _PUNCTUATION
    return _BLANK if character.isspace() else _LETTER


def _word_offsets(text: str, segmenter: str) -> np.ndarray:
    """Return the offsets in characters at which the segmenter's words begin."""
    words = _cutter(segmenter)(text)
    return np.fromiter(accumulate(map(len, words), initial=0), np.int64)


@cache
def _cutter(segmenter: str) -> Callable[[str], Iterable[str]]:
    try:
        if segmenter == "rjieba":
            import rjieba

            return rjieba.cut
        with warnings.catch_warnings():
            # jieba 0.42.1 has invalid escape sequences, and asks for pkg_resources.
            warnings.simplefilter("ignore")
            import jieba
    except ModuleNotFoundError as error:
        raise UsageError(f"segmenter {segmenter!r} is not installed; pip install {segmenter}") from error
    # jieba's own set-up goes through a cache in the temporary folder, a race between workers; this one does not.
    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer.lcut
