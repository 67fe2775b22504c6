"""Tagged words: a word and its tag a line, empty lines between sentences (CoNLL), or a sentence and its tags a line.

The second form is `words separated by spaces TAB tags separated by spaces`, with or without a header line, as MSRA-NER
has it in two columns. Which form a file has is seen in its first line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from tasks.readers.lines import read_lines

if TYPE_CHECKING:
    from tasks.datasets import DatasetRow

_TAG = re.compile(r"O|[BIMES][-_].+")
_DOCUMENT = "-DOCSTART-"


def records(row: DatasetRow, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of every sentence with its `text_a`, a list of words, and its `label`, a list of tags or None.

    Raises:
        UsageError: a word without a tag, or as many words as tags are not; file and line are named.
    """
    lines = [(number, line) for number, line in read_lines(row, path)]
    if not lines:
        return
    names = row.header_names
    header = [cell.strip().lower() for cell in lines[0][1].split("\t")]
    has_header = header[0] in names["text_a"] and all(cell in names["label"] for cell in header[1:2])
    if has_header or _is_sentence(lines[0][1]):
        yield from _sentences(path, lines[has_header:])
    else:
        yield from _words(path, lines)


def _is_sentence(line: str) -> bool:
    """Whether a line is a whole sentence and not a word with its tag."""
    words, tab, tags = line.partition("\t")
    if tab:
        return len(_cells(words)) > 1 and len(_cells(words)) == len(_cells(tags))
    return len(_cells(words)) > 1 and not _TAG.fullmatch(_cells(words)[-1])


def _cells(text: str) -> list[str]:
    return [cell for cell in text.split(" ") if cell]


def _sentences(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in lines:
        text, tab, rest = line.partition("\t")
        words, tags = _cells(text), _cells(rest) if tab else None
        if tags is not None and len(words) != len(tags):
            raise UsageError(f"{path}:{number}: {len(words)} words and {len(tags)} tags; expected a tag for each word")
        yield f"{path}:{number}", {"text_a": words, "label": tags}


def _words(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[str, dict[str, Any]]]:
    words: list[str] = []
    tags: list[str] = []
    first = previous = 0
    for number, line in lines:
        blank = "\t" not in line and not line.strip()
        if words and (blank or number != previous + 1):  # `read_lines` leaves empty lines out
            yield f"{path}:{first}", _sentence(words, tags)
            words, tags = [], []
        previous = number
        if blank or line.startswith(_DOCUMENT):
            continue
        # A space may be the word itself where a TAB separates.
        cells = line.split("\t") if "\t" in line else line.split()
        if not words:
            first = number
        elif (len(cells) > 1) != bool(tags):
            raise UsageError(f"{path}:{number}: got {line[:40]!r}; expected a tag for every word, or for none")
        words.append(cells[0])
        if len(cells) > 1:
            tags.append(cells[-1].strip())
    if words:
        yield f"{path}:{first}", _sentence(words, tags)


def _sentence(words: list[str], tags: list[str]) -> dict[str, Any]:
    return {"text_a": words, "label": tags or None}
