"""Line-aligned files: line n of one is the translation of line n of the other. As an input they are `FIRST:SECOND`.

Lines are counted before anything is made of them, so that files of unequal lengths are refused at once, and so that a
reader can enter both at the same line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl.app import UsageError

from data.corpus import limits
from data.corpus.compression import compression_of, open_text
from data.corpus.encodings import START, UTF8, Report, entry_before, survey
from data.corpus.lines import decode, row_at, seek_line
from data.corpus.spans import Counts, Span

BETWEEN = ":"
_NEWLINE = ord("\n")


def sides_of(path: Path) -> tuple[Path, Path] | None:
    """Return the two files that a name with a colon means; None where it is a name of one file, or of none."""
    name = str(path)
    if BETWEEN not in name or path.exists():
        return None
    for place in (i for i, letter in enumerate(name) if letter == BETWEEN):
        first, second = (Path(part).expanduser() for part in (name[:place], name[place + 1 :]))
        if first.is_file() and second.is_file():
            return first, second
    return None


def files_of(path: Path) -> tuple[Path, ...]:
    """Return the files of an input: two of a parallel one, else the one."""
    return sides_of(path) or (path,)


def parallel_spans(path: Path, span_bytes: int, encoding: str = UTF8) -> list[Span]:
    """Divide two files at the same lines, about every `span_bytes` of the first; compressed ones are one span.

    Raises:
        UsageError: one has more lines than the other.
    """
    sides = sides_of(path)
    assert sides is not None
    first, second = sides
    marks, lines = _marks(first, encoding, span_bytes)
    begins, others = _offsets(second, encoding, [line for line, _ in marks])
    if lines != others:
        raise _unequal(first, second, lines, others)
    if any(_is_compressed(side) for side in sides):
        return [Span(first, encoding=encoding, beside=second)] if lines else []
    entries = [START] if encoding == UTF8 else survey(first, encoding)[0]
    offsets = [offset for _, offset in marks]
    ends = [*offsets[1:], None]
    return [
        Span(first, start, end, encoding, entry_before(entries, start), second, begin)
        for start, end, begin in zip(offsets, ends, begins, strict=True)
        if lines
    ]


def parallel_documents(span: Span, counts: Counts, report: Report) -> Iterator[list[str]]:
    """Yield the pairs of lines of a span, a document of two sentences each.

    A pair that lacks a side yields an empty document, for the caller to count; a line blank in both is skipped.

    Raises:
        UsageError: a file ends before the other.
    """
    assert span.beside is not None
    second = Span(span.beside, encoding=span.encoding)
    with (
        open_text(span.path, span.encoding, span.entry, report) as stream,
        open_text(second.path, span.encoding) as other,
    ):
        offset, beside = seek_line(stream, span.start), seek_line(other, span.beside_start)
        while span.end is None or offset < span.end:
            rows = row_at(stream, span, offset), row_at(other, second, beside)
            if not any(rows):
                return
            if not all(rows):
                raise _unequal(span.path, span.beside, *(_count_lines(each, span.encoding) for each in files(span)))
            texts = [decode(raw, counts, at_file_start=at == 0) for raw, at in zip(rows, (offset, beside), strict=True)]
            counts.crlf_lines += sum(text.endswith("\r\n") for text in texts)
            sides = [text.strip() for text in texts]
            if any(sides):
                yield sides if all(sides) else []
            counts.bytes += sum(map(len, rows))
            offset, beside = offset + len(rows[0]), beside + len(rows[1])


def files(span: Span) -> tuple[Path, ...]:
    """Return the files that a span reads."""
    return (span.path,) if span.beside is None else (span.path, span.beside)


def _unequal(first: Path, second: Path, lines: int, others: int) -> UsageError:
    shorter, end = (first, lines) if lines < others else (second, others)
    return UsageError(
        f"--input_file={first}{BETWEEN}{second}: {lines:,} lines and {others:,} lines; expected equally many, line n "
        f"of one the translation of line n of the other: {shorter} ends at line {end:,}"
    )


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return bool(compression_of(file))


def _blocks(path: Path, encoding: str) -> Iterator[tuple[bytes, np.ndarray]]:
    """Yield a file as UTF-8 by blocks, each with the places of its line ends."""
    with open_text(path, encoding) as stream:
        while block := stream.read(limits.READ_BYTES):
            yield block, np.flatnonzero(np.frombuffer(block, np.uint8) == _NEWLINE)


def _count_lines(path: Path, encoding: str) -> int:
    return _offsets(path, encoding, [])[1]


def _marks(path: Path, encoding: str, step: int) -> tuple[list[tuple[int, int]], int]:
    """Return (line, offset), from 0, of the first line of every `step` bytes; and how many lines there are."""
    marks, line, offset, wanted, ended = [(0, 0)], 0, 0, step, True
    for block, places in _blocks(path, encoding):
        begins = places + offset + 1
        while (i := int(np.searchsorted(begins, wanted))) < len(begins):
            marks.append((line + i + 1, int(begins[i])))
            wanted = (int(begins[i]) // step + 1) * step
        line, offset, ended = line + len(places), offset + len(block), block.endswith(b"\n")
    total = line + (not ended)
    return [mark for mark in marks if mark[0] < max(total, 1)], total


def _offsets(path: Path, encoding: str, wanted: Sequence[int]) -> tuple[list[int], int]:
    """Return where the ascending lines `wanted` begin, as far as they are there; and how many lines there are."""
    found, line, offset, ended = [0] if 0 in wanted[:1] else [], 0, 0, True
    for block, places in _blocks(path, encoding):
        while len(found) < len(wanted) and wanted[len(found)] - 1 < line + len(places):
            found.append(offset + int(places[wanted[len(found)] - 1 - line]) + 1)
        line, offset, ended = line + len(places), offset + len(block), block.endswith(b"\n")
    return found, line + (not ended)
