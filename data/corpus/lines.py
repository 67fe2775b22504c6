"""Bytes -> lines of text: entering a file in its middle, and every oddity of encodings with a defined outcome."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from typing import NamedTuple

from absl.app import UsageError

from data.corpus import limits
from data.corpus.compression import open_text
from data.corpus.spans import Counts, Span

_BOM = codecs.BOM_UTF8.decode()


def seek_document(stream: io.BufferedReader, span: Span) -> int:
    """Move to the first line from span.start on that belongs to no earlier document; return its offset."""
    if span.start == 0:
        return 0
    position = seek_line(stream, span.start)
    at_boundary = _line_before_is_blank(stream, position)
    stream.seek(position)
    while not at_boundary and (span.end is None or position < span.end):
        part = stream.readline(limits.READ_BYTES)
        if not part:
            break
        at_boundary = part.endswith(b"\n") and _is_blank(part)
        while part and not part.endswith(b"\n"):
            part = stream.readline(limits.READ_BYTES)
        position = stream.tell()
    return position


def seek_line(stream: io.BufferedReader, start: int) -> int:
    """Move to the first line that begins at `start` or later; return its offset."""
    if start == 0:
        return 0
    stream.seek(start - 1)
    while (part := stream.readline(limits.READ_BYTES)) and not part.endswith(b"\n"):
        pass
    return stream.tell()


def _line_before_is_blank(stream: io.BufferedReader, position: int) -> bool:
    """Whether the line that ends at `position` is blank by the measure of `lines`."""
    size = 256
    while True:
        start = max(0, position - size)
        stream.seek(start)
        _, newline, line = stream.read(position - start).removesuffix(b"\n").rpartition(b"\n")
        if newline or start == 0:
            return len(line) < limits.READ_BYTES and _is_blank(line if newline else line.removeprefix(codecs.BOM_UTF8))
        if size > limits.READ_BYTES:
            return False
        size *= 8


def _is_blank(line: bytes) -> bool:
    return not line.decode("utf-8", "replace").replace("\0", "").strip()


class Line(NamedTuple):
    """A line, or a part of one that is longer than `limits.READ_BYTES`; without the line end."""

    text: str
    offset: int  # of the whole line
    size: int  # bytes
    continues: bool  # a later part of a line
    whole: bool


def lines(stream: io.BufferedReader, offset: int, counts: Counts) -> Iterator[Line]:
    """Yield the lines from `offset` on, which is where the stream is; counts what decoding repairs."""
    position = offset
    continues = False
    remains = b""
    while raw := stream.readline(limits.READ_BYTES):
        size = len(raw)
        ends = raw.endswith(b"\n") or size < limits.READ_BYTES
        if remains or not ends:
            raw = remains + raw
            cut = len(raw) if ends else _last_whole_character(raw)
            raw, remains = raw[:cut], raw[cut:]
        text = decode(raw, counts, at_file_start=position == 0)
        counts.crlf_lines += text.endswith("\r\n")
        yield Line(text.rstrip("\r\n"), offset, size, continues, ends and not continues)
        position += size
        continues = not ends
        if ends:
            offset = position


def _last_whole_character(raw: bytes) -> int:
    """Return where to cut `raw` so that no character of UTF-8 is divided."""
    for back in range(1, 4):
        if raw[-back] >= 0xC0:
            return len(raw) - back
        if raw[-back] < 0x80:
            break
    return len(raw)


def decode(raw: bytes, counts: Counts, *, at_file_start: bool = False) -> str:
    """Return bytes as text: invalid UTF-8 becomes U+FFFD, NULs and a byte-order mark are dropped, all counted."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("utf-8", "replace")
        counts.invalid_sequences += text.count("\ufffd") - raw.count("\ufffd".encode())
    if at_file_start and text.startswith(_BOM):
        counts.byte_order_marks += 1
        text = text[1:]
    return without_nuls(text, counts)


def without_nuls(text: str, counts: Counts) -> str:
    """Return the text without its NULs, which are counted."""
    if "\0" not in text:
        return text
    counts.nul_characters += text.count("\0")
    return text.replace("\0", "")


def row_at(stream: io.BufferedReader, span: Span, offset: int) -> bytes:
    """Return the next row, whole; empty at the end. Raises `UsageError` for one too long to be a row of text."""
    raw = stream.readline(limits.MAX_ROW_BYTES)
    if len(raw) == limits.MAX_ROW_BYTES and not raw.endswith(b"\n"):
        raise UsageError(
            f"{span.path}, line {line_number(span, offset)}: longer than {limits.MAX_ROW_BYTES:,} bytes; "
            "expected a document a row, with a line end behind each"
        )
    return raw


def line_number(span: Span, offset: int) -> int:
    """Return the number, from 1, of the line of a file that begins at `offset` bytes; reads the file up to there."""
    with open_text(span.path, span.encoding) as stream:
        number = 1
        while offset and (block := stream.read(min(offset, limits.READ_BYTES))):
            number += block.count(b"\n")
            offset -= len(block)
    return number
