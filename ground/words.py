"""The known word that a misspelt one is nearest to, for messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the one of `known` that is spelt most like `word`; raises `IndexError` if nothing is known."""
    return difflib.get_close_matches(word, list(known), n=1, cutoff=0.0)[0]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'X'?"` where a known word is spelt nearly so, else the empty string."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
