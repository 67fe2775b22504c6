"""Words for messages: the known word that a misspelt one is nearest to, a few of many names, one line of any text."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_SHOWN_NAMES = 4


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the one of `known` that is spelt most like `word`; raises `IndexError` if nothing is known."""
    return difflib.get_close_matches(word, list(known), n=1, cutoff=0.0)[0]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'X'?"` where a known word is spelt nearly so, else the empty string."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def few_names(names: Iterable[str]) -> str:
    """Name at most four, and how many more there are."""
    names = list(names)
    shown = ", ".join(names[:_SHOWN_NAMES]) or "nothing"
    return shown + (f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else "")


def one_line(text: str) -> str:
    """Return `text` as one line in which what no terminal shows, such as a control character, is written in escapes."""
    line = " ".join(text.split())
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in line)
