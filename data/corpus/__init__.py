"""Raw text in, documents of sentences out: albert_zh's plain format, JSON lines, tfds and parallel text.

Plain text has a sentence a line and a blank line between documents (albert_zh and BERT read it so); unlike theirs,
every file begins a new document. Every oddity of the input has a defined outcome and is counted in `Counts`: a
byte-order mark is dropped, CRLF ends a line as LF does, NULs are removed, invalid UTF-8 becomes U+FFFD, a line longer
than MAX_LINE_CHARACTERS is split at its sentences, and so is a document longer than MAX_DOCUMENT_CHARACTERS.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from data.corpus import limits
from data.corpus.compression import compression_of, nothing
from data.corpus.encodings import START, UTF8, Report, entry_before, find_encoding, survey
from data.corpus.formats import file_documents, pair_documents
from data.corpus.inputs import Corpus, expand_inputs, find_corpora
from data.corpus.look import ACCEPT, check_inputs
from data.corpus.parallel import files_of, parallel_documents, parallel_spans, sides_of
from data.corpus.sentences import split_sentences
from data.corpus.spans import Counts, Span
from data.corpus.tfds import builder_of, is_tfds, tfds_documents

__all__ = [
    "ACCEPT",
    "UTF8",
    "Corpus",
    "Counts",
    "Report",
    "Span",
    "check_inputs",
    "expand_inputs",
    "files_of",
    "find_corpora",
    "find_encoding",
    "limits",
    "nothing",
    "plan_spans",
    "read_documents",
    "split_sentences",
    "text_bytes",
]


def text_bytes(path: Path, encoding: str = UTF8) -> int:
    """Return how many bytes of UTF-8 a file holds, of a compressed one its own size; 0 for `tfds:`.

    A file of another encoding is read for it, once. Of two line-aligned files it is the size of the first, which spans
    count by.
    """
    path = files_of(path)[0]
    if not path.is_file():
        return 0
    if encoding == UTF8 or _is_compressed(path):
        return path.stat().st_size
    return survey(path, encoding)[1]


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as stream:
        return bool(compression_of(stream))


def plan_spans(paths: Iterable[Path], span_bytes: int = limits.SPAN_BYTES, encoding: str = UTF8) -> list[Span]:
    """Divide inputs for workers; the division depends on the text only, never on its encoding or the number of workers.

    A compressed file cannot be entered in its middle and is one span.

    Raises:
        UsageError: two line-aligned files have different numbers of lines.
    """
    spans: list[Span] = []
    for path in paths:
        if is_tfds(path):
            builder, split = builder_of(path)
            size, step = builder.info.splits[split].num_examples, max(1, span_bytes // 1024)
            spans += [Span(path, start, min(size, start + step)) for start in range(0, size, step)]
        elif sides_of(path):
            spans += parallel_spans(path, span_bytes, encoding)
        elif _is_compressed(path):
            spans.append(Span(path, encoding=encoding))
        else:
            entries, size = ([START], path.stat().st_size) if encoding == UTF8 else survey(path, encoding)
            spans += [
                Span(path, start, min(size, start + span_bytes), encoding, entry_before(entries, start))
                for start in range(0, size, span_bytes)
            ]
    return spans


def read_documents(
    inputs: Path | Span | Iterable[Path | Span],
    counts: Counts | None = None,
    *,
    text_field: str = "text",
    text: str = "documents",
    report: Report = nothing,
) -> Iterator[list[str]]:
    """Yield documents as non-empty lists of non-empty sentences, stripped, in order.

    Files are told apart by content: gzip, xz, bzip2 and zstd are decompressed; JSON lines (an object a line, or the
    suffix .jsonl, .ndjson, .json) hold a document each in `text_field`, which is split into sentences; all other files
    are plain text.

    Args:
        inputs: files or spans of them.
        counts: is added to while documents are read.
        text_field: field of JSON lines and tfds examples.
        text: "documents", or "pairs" where every line is two sentences with a TAB between (`Objective.text`) or spans
            are of two files.
        report: is told of further bytes of the files as they are read, every megabyte of text or so.

    Raises:
        UsageError: a row of JSON cannot be read or lacks the field, a line of parallel text has not two columns, a
            compressed file is damaged, cut short or a bomb, the text is UTF-16; file and line are named.
    """
    counts = Counts() if counts is None else counts
    for item in [inputs] if isinstance(inputs, Path | Span) else inputs:
        span = Span(item) if isinstance(item, Path) else item
        if span.beside is not None:
            documents = parallel_documents(span, counts, report)
        elif text == "pairs":
            documents = pair_documents(span, counts, report)
        elif is_tfds(span.path):
            documents = tfds_documents(span, counts, text_field)
        else:
            documents = file_documents(span, counts, text_field, report)
        for document in documents:
            if not document:
                counts.empty_documents += 1
                continue
            counts.documents += 1
            counts.sentences += len(document)
            counts.characters += sum(map(len, document))
            yield document
