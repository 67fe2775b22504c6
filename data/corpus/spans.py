"""The unit of work: a part of one input, and the counts of everything that was read or repaired in it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from data.corpus.encodings import START, UTF8, Entry


@dataclass
class Counts:
    """The text that was read and the repairs that it needed; the counts of several workers add up."""

    bytes: int = 0  # after decompression
    documents: int = 0
    sentences: int = 0
    characters: int = 0
    byte_order_marks: int = 0
    crlf_lines: int = 0
    nul_characters: int = 0
    invalid_sequences: int = 0  # of UTF-8, and lone surrogates in JSON
    split_lines: int = 0
    split_documents: int = 0
    empty_documents: int = 0  # JSON, tfds: rows without text; parallel text: pairs that lack a side

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def mended(self) -> str:
        """Return one line that names every repair; empty for clean text."""
        fields = list(dataclasses.asdict(self).items())[4:]
        return ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in fields if value)


@dataclass(frozen=True, slots=True)
class Span:
    """The documents of one input that begin in [start, end): bytes of a file, examples of a tfds set.

    A document belongs to the span that holds its first byte and is read to its own end, so that any division of a file
    yields every document once.

    Attributes:
        path: the input.
        start: first byte, of the text as UTF-8, or first example.
        end: behind the last; None: to the end.
        encoding: Python's name of the file's.
        entry: where a reader of another encoding may enter the file.
        beside: a file of as many lines, the translations of those of `path`; None: there is none.
        beside_start: the first byte of it, as UTF-8, that belongs to the span.
    """

    path: Path
    start: int = 0
    end: int | None = None
    encoding: str = UTF8
    entry: Entry = START
    beside: Path | None = None
    beside_start: int = 0
