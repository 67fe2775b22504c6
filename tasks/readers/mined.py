"""Sentences of two languages of which some are translations of each other (BUCC 2018, as XTREME prepares it).

`de-en.dev.de` and `de-en.dev.en` have an id, a TAB and a sentence a line, `de-en.dev.gold` two ids a line; XTREME's
test files come without the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from absl.app import UsageError

from tasks.readers.lines import read_lines

if TYPE_CHECKING:
    from tasks.datasets import DatasetRow

ENGLISH, GOLD = ".en", ".gold"


def records(row: DatasetRow, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield every sentence of the foreign file, then of the English one: `id`, `text_a`, `group`, and its `label`.

    `group` is "a" or "b"; `label` is the id of the translation, empty where there is none, absent without a gold file.

    Raises:
        UsageError: a file is missing, a line has no two columns, or an id is there twice or nowhere; the line is named.
    """
    sides = {"a": path, "b": path.with_suffix(ENGLISH)}
    if not sides["b"].is_file():
        raise UsageError(f"{path} has no {sides['b'].name} beside it; expected the sentences in English")
    found = {side: dict(_pairs(row, name)) for side, name in sides.items()}
    gold: dict[str, str] = {}
    has_gold = path.with_suffix(GOLD).is_file()
    for number, (own, other) in _numbered(row, path.with_suffix(GOLD)) if has_gold else ():
        for each, side in ((own, "a"), (other, "b")):
            if each not in found[side] or f"{side} {each}" in gold:
                wrong = "is paired twice" if each in found[side] else f"is not in {sides[side].name}"
                raise UsageError(f"{path.with_suffix(GOLD)}:{number}: {each} {wrong}; expected an id of each file once")
        gold |= {f"a {own}": other, f"b {other}": own}
    for side, sentences in found.items():
        for each, text in sentences.items():
            record = {"id": each, "text_a": text, "group": side}
            yield f"{sides[side]}: {each}", record | ({"label": gold.get(f"{side} {each}", "")} if has_gold else {})


def _pairs(row: DatasetRow, path: Path) -> Iterator[tuple[str, str]]:
    seen = set()
    for number, (each, text) in _numbered(row, path):
        if each in seen:
            raise UsageError(f"{path}:{number}: the id {each} comes twice; sentences are told apart by it")
        seen.add(each)
        yield each, text


def _numbered(row: DatasetRow, path: Path) -> Iterator[tuple[int, tuple[str, str]]]:
    for number, line in read_lines(row, path):
        each, tab, text = line.partition("\t")
        if not each or not tab or not text.strip():
            raise UsageError(f"{path}:{number}: got {line[:40]!r}; expected an id, a TAB, and a sentence or an id")
        yield number, (each, text)
