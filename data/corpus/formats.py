"""Files -> documents of sentences: plain text, JSON lines, parallel text."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

from absl.app import UsageError

from data.corpus import compression, limits
from data.corpus.compression import open_text
from data.corpus.encodings import Report
from data.corpus.lines import decode, line_number, lines, row_at, seek_document, seek_line, without_nuls
from data.corpus.sentences import short_sentences, split_sentences
from data.corpus.spans import Counts, Span
from ground.documents import SURROGATE, json_line

_JSON_SUFFIXES = {".jsonl", ".ndjson", ".json"}


def file_documents(span: Span, counts: Counts, text_field: str, report: Report) -> Iterator[list[str]]:
    """Yield the documents of a span of a file, which is read as JSON lines or as plain text by its content."""
    with open_text(span.path, span.encoding, span.entry, report) as stream:
        if _is_json(span.path, stream):
            yield from _json_documents(stream, span, counts, text_field)
        else:
            yield from _plain_documents(stream, span, counts)


def _plain_documents(stream: io.BufferedReader, span: Span, counts: Counts) -> Iterator[list[str]]:
    position = seek_document(stream, span)
    sentences: list[str] = []
    characters = 0
    in_document = False
    for line in lines(stream, position, counts):
        if not in_document and span.end is not None and line.offset >= span.end:
            break
        counts.bytes += line.size
        text = line.text.strip()
        if not text:
            if line.whole:
                if sentences:
                    yield sentences
                sentences, characters, in_document = [], 0, False
            else:
                in_document = True  # white space longer than a read is no blank line, here as in seek_document
            continue
        if characters + len(text) > limits.MAX_DOCUMENT_CHARACTERS and sentences:
            counts.split_documents += 1
            yield sentences
            sentences, characters = [], 0
        if line.whole and len(text) <= limits.MAX_LINE_CHARACTERS:
            sentences.append(text)
        else:
            sentences += short_sentences(text)
            counts.split_lines += not line.continues
        characters += len(text)
        in_document = True
    if sentences:
        yield sentences


def _json_documents(stream: io.BufferedReader, span: Span, counts: Counts, text_field: str) -> Iterator[list[str]]:
    offset = seek_line(stream, span.start)
    while (span.end is None or offset < span.end) and (raw := row_at(stream, span, offset)):
        line = decode(raw, counts, at_file_start=offset == 0).strip()
        if line:
            try:
                text = _json_text(line, text_field)
            except ValueError as error:
                raise UsageError(f"{span.path}, line {line_number(span, offset)}: {error}") from None
            yield running_text(text, counts)
        counts.bytes += len(raw)
        offset += len(raw)


def _json_text(line: str, text_field: str) -> str:
    try:
        row = json_line(line)
    except ValueError as error:
        raise ValueError(f"not JSON ({error}); expected one object a line") from None
    if not isinstance(row, dict):
        raise ValueError(f"a JSON {type(row).__name__}; expected one object a line")
    if not isinstance(row.get(text_field), str):
        raise ValueError(f"no text under {text_field!r} among {sorted(row)}; set the field's name with --text_field")
    return row[text_field]


def running_text(text: str, counts: Counts) -> list[str]:
    """Return the sentences of running text, with its repairs counted."""
    if SURROGATE.search(text):
        text, replaced = SURROGATE.subn("\ufffd", text)
        counts.invalid_sequences += replaced
    sentences = split_sentences(without_nuls(text, counts))
    counts.split_lines += sum(len(sentence) > limits.MAX_LINE_CHARACTERS for sentence in sentences)
    return [short for sentence in sentences for short in short_sentences(sentence)]


def _is_json(path: Path, stream: io.BufferedReader) -> bool:
    suffixes = [suffix for suffix in path.suffixes if suffix not in compression.SUFFIXES]
    if suffixes and suffixes[-1] in _JSON_SUFFIXES:
        return True
    return re.match(rb'(?:\xef\xbb\xbf)?\s*\{\s*"[^"\n]*"\s*:', stream.peek(1)) is not None


def pair_documents(span: Span, counts: Counts, report: Report) -> Iterator[list[str]]:
    """Yield the lines of a span of parallel text: two columns with a TAB between are a document of two sentences.

    A line belongs to the span in which it begins, so that any division of a file yields every line once. A line that
    lacks a side yields an empty document, for the caller to count; blank lines are skipped.

    Raises:
        UsageError: a line has another number of columns; file and line are named.
    """
    with open_text(span.path, span.encoding, span.entry, report) as stream:
        offset = seek_line(stream, span.start)
        while (span.end is None or offset < span.end) and (raw := row_at(stream, span, offset)):
            line = decode(raw, counts, at_file_start=offset == 0)
            counts.crlf_lines += line.endswith("\r\n")
            if line.strip():
                sides = [column.strip() for column in line.rstrip("\r\n").split("\t")]
                if len(sides) != 2:
                    raise UsageError(
                        f"{span.path}, line {line_number(span, offset)}: {len(sides)} column(s); expected two, "
                        "the same sentence in two languages, with a TAB between"
                    )
                yield sides if all(sides) else []
            counts.bytes += len(raw)
            offset += len(raw)
