"""Raw text in, documents of sentences out: albert_zh's plain format, JSON lines, tfds and parallel text.

Plain text has a sentence a line and a blank line between documents (albert_zh and BERT read it so); unlike theirs,
every file begins a new document. Every oddity of the input has a defined outcome and is counted in `Counts`: a
byte-order mark is dropped, CRLF ends a line as LF does, NULs are removed, invalid UTF-8 becomes U+FFFD, a line longer
than MAX_LINE_CHARACTERS is split at its sentences, and so is a document longer than MAX_DOCUMENT_CHARACTERS.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from absl.app import UsageError

from data.corpus import limits
from data.corpus.compression import compression_of, nothing
from data.corpus.encodings import START, UTF8, Report, entry_before, find_encoding, survey
from data.corpus.formats import file_documents, pair_documents
from data.corpus.look import ACCEPT, check_inputs
from data.corpus.sentences import split_sentences
from data.corpus.spans import Counts, Span
from data.corpus.tfds import PREFIX, builder_of, is_tfds, tfds_documents

__all__ = [
    "ACCEPT",
    "UTF8",
    "Counts",
    "Report",
    "Span",
    "check_inputs",
    "expand_inputs",
    "find_encoding",
    "limits",
    "nothing",
    "plan_spans",
    "read_documents",
    "split_sentences",
    "text_bytes",
]


def expand_inputs(patterns: str | Sequence[str]) -> list[Path]:
    """Return the files of --input_file: comma-separated glob patterns, sorted within each; none twice.

    `tfds:NAME` is kept.

    Raises:
        UsageError: a pattern matches no file, or there is none.
    """
    if isinstance(patterns, str):
        patterns = [patterns]
    names = [name.strip() for pattern in patterns for name in pattern.split(",") if name.strip()]
    if not names:
        raise UsageError("--input_file: no input given; expected files or glob patterns, separated by commas")
    paths: dict[Path, None] = {}
    for name in names:
        path = Path(name).expanduser()
        if name.startswith(PREFIX) or path.is_file():
            found = [path]
        elif path.is_dir():
            found = []
        else:
            matches = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
            # As in a shell, '*' does not match hidden files: half-written files are hidden.
            found = sorted(p for p in matches if p.is_file() and (p.name[0] != "." or path.name[0] == "."))
        if not found:
            hint = f"a folder; did you mean {path / '*'}" if path.is_dir() else "no file matches; check the path"
            raise UsageError(f"--input_file={name}: {hint}")
        paths.update(dict.fromkeys(found))
    return list(paths)


def text_bytes(path: Path, encoding: str = UTF8) -> int:
    """Return how many bytes of UTF-8 a file holds, of a compressed one its own size; 0 for `tfds:`.

    A file of another encoding is read for it, once.
    """
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
    """
    spans: list[Span] = []
    for path in paths:
        if is_tfds(path):
            builder, split = builder_of(path)
            size, step = builder.info.splits[split].num_examples, max(1, span_bytes // 1024)
            spans += [Span(path, start, min(size, start + step)) for start in range(0, size, step)]
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
        text: "documents", or "pairs" where every line is two sentences with a TAB between (`Objective.text`).
        report: is told of further bytes of the files as they are read, every megabyte of text or so.

    Raises:
        UsageError: a row of JSON cannot be read or lacks the field, a line of parallel text has not two columns, a
            compressed file is damaged, cut short or a bomb, the text is UTF-16; file and line are named.
    """
    counts = Counts() if counts is None else counts
    for item in [inputs] if isinstance(inputs, Path | Span) else inputs:
        span = Span(item) if isinstance(item, Path) else item
        if text == "pairs":
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
