"""Raw text in, documents of sentences out: albert_zh's plain format, JSON lines, tfds and parallel text.

Plain text has a sentence a line and a blank line between documents (albert_zh and BERT read it so); unlike theirs,
every file begins a new document. Whatever is odd in the input has a defined outcome and is counted in `Counts`: a
byte-order mark is dropped, CRLF ends a line as LF does, NULs are removed, invalid UTF-8 becomes U+FFFD, a line longer
than MAX_LINE_CHARACTERS is split at its sentences, and so is a document longer than MAX_DOCUMENT_CHARACTERS.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import dataclasses
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from absl import app

from ground.words import did_you_mean

MAX_LINE_CHARACTERS = 4096
MAX_DOCUMENT_CHARACTERS = 1 << 20
SPAN_BYTES = 1 << 23
_READ_BYTES = 1 << 20
_JSON_SUFFIXES = {".jsonl", ".ndjson", ".json"}
_COMPRESSION_SUFFIXES = {".gz", ".xz", ".zst", ".bz2"}
_TFDS = "tfds:"
# Long enough that no text begins so by chance.
_MAGIC = re.compile(
    rb"(?P<gz>\x1f\x8b\x08)|(?P<xz>\xfd7zXZ\0)|(?P<bz2>BZh[1-9](?:1AY&SY|\x17rE8P\x90))|(?P<zst>\x28\xb5\x2f\xfd)"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_BOM = codecs.BOM_UTF8.decode()


@dataclass
class Counts:
    """What was read, and what had to be mended; those of several workers add up."""

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
        """One line for the report that names all that is not zero; empty for clean text."""
        fields = list(dataclasses.asdict(self).items())[4:]
        return ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in fields if value)


@dataclass(frozen=True, slots=True)
class Span:
    """The documents of one input that begin in [start, end): bytes of a file, examples of a tfds set.

    A document belongs to the span that its first byte lies in and is read to its own end, so that any division of a
    file yields every document once.
    """

    path: Path
    start: int = 0
    end: int | None = None


def expand_inputs(patterns: str | Sequence[str]) -> list[Path]:
    """Returns the files of comma-separated glob patterns, sorted within each, none twice; `tfds:NAME` stays as it is.

    Raises:
      absl.app.UsageError: a pattern matches no file, or there is none.
    """
    if isinstance(patterns, str):
        patterns = [patterns]
    names = [name.strip() for pattern in patterns for name in pattern.split(",") if name.strip()]
    if not names:
        raise app.UsageError("no input given; expected files or glob patterns, separated by commas")
    paths: dict[Path, None] = {}
    for name in names:
        path = Path(name).expanduser()
        if name.startswith(_TFDS) or path.is_file():
            found = [path]
        elif path.is_dir():
            found = []
        else:
            matches = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
            # As in a shell, '*' does not mean hidden files (half-written ones are).
            found = sorted(p for p in matches if p.is_file() and (p.name[0] != "." or path.name[0] == "."))
        if not found:
            hint = f"a folder; did you mean {path / '*'}" if path.is_dir() else "no file matches; check the path"
            raise app.UsageError(f"input {name!r}: {hint}")
        paths.update(dict.fromkeys(found))
    return list(paths)


def plan_spans(paths: Iterable[Path], span_bytes: int = SPAN_BYTES) -> list[Span]:
    """Divides inputs for workers; depends on the inputs only, never on how many workers there are.

    Compressed files cannot be entered in the middle and are one span each.
    """
    spans: list[Span] = []
    for path in paths:
        if _is_tfds(path):
            builder, split = _tfds_builder(path)
            size, step = builder.info.splits[split].num_examples, max(1, span_bytes // 1024)
        else:
            with path.open("rb") as stream:
                compressed = _compression(stream)
            size, step = path.stat().st_size, span_bytes
            if compressed:
                spans.append(Span(path))
                continue
        spans += [Span(path, start, min(size, start + step)) for start in range(0, size, step)]
    return spans


def read_documents(
    inputs: Path | Span | Iterable[Path | Span], counts: Counts | None = None, *, text_field: str = "text"
) -> Iterator[list[str]]:
    """Yields documents as non-empty lists of non-empty sentences, stripped, in order.

    Files are told apart by content: gzip, xz, bzip2 and zstd are decompressed; JSON lines (an object a line, or the
    suffix .jsonl, .ndjson, .json) hold a document each in `text_field`, which is split into sentences; all else is
    plain text.

    Raises:
      absl.app.UsageError: a row of JSON cannot be read or lacks the field, a compressed file is damaged or cut short,
        the text is UTF-16; file and line are named.
    """
    counts = Counts() if counts is None else counts
    for item in [inputs] if isinstance(inputs, Path | Span) else inputs:
        span = Span(item) if isinstance(item, Path) else item
        if _is_tfds(span.path):
            documents = _tfds_documents(span, counts, text_field)
        else:
            documents = _file_documents(span, counts, text_field)
        for document in documents:
            if not document:
                counts.empty_documents += 1
                continue
            counts.documents += 1
            counts.sentences += len(document)
            counts.characters += sum(map(len, document))
            yield document


def read_pairs(source: Path, target: Path | None = None, counts: Counts | None = None) -> Iterator[tuple[str, str]]:
    """Yields aligned sentences: line by line of two files, or of one file with two columns and a TAB between.

    A pair that lacks a side is left out and counted.

    Raises:
      absl.app.UsageError: the files differ in length, or a line has not two columns; file and line are named.
    """
    counts = Counts() if counts is None else counts
    for number, (first, second) in enumerate(_aligned(source, target, counts), 1):
        if first is None or second is None:
            short, long = (source, target) if first is None else (target, source)
            raise app.UsageError(f"{short} ends after {number - 1} lines but {long} goes on; they must be aligned")
        first, second = first.strip(), second.strip()
        if first and second:
            counts.documents += 1
            counts.sentences += 2
            counts.characters += len(first) + len(second)
            yield first, second
        else:
            counts.empty_documents += 1


def _aligned(source: Path, target: Path | None, counts: Counts) -> Iterator[tuple[str | None, str | None]]:
    if target is not None:
        yield from zip_longest(_whole_lines(source, counts), _whole_lines(target, counts))
        return
    for number, line in enumerate(_whole_lines(source, counts), 1):
        columns = line.split("\t")
        if len(columns) != 2:
            raise app.UsageError(f"{source}, line {number}: {len(columns)} columns; expected two with a TAB between")
        yield columns[0], columns[1]


_CLOSING = "\"'”’»」』）)】》〉\\]"
_SENTENCE_END = re.compile(
    rf"""(?: [。！？｡]+                               # ends a Chinese or Japanese sentence wherever it stands
           | …+ (?=[{_CLOSING}])
           | [!?]+ (?=[{_CLOSING}]*(?:\s|[\u2E80-\u9FFF\uF900-\uFAFF]))
           | (?<!\b[A-Za-z]) \.+ (?=[{_CLOSING}]*\s+[^\sa-z])   # not after an initial, not before a lower-case word
         ) [{_CLOSING}]*""",
    re.VERBOSE,
)
_ABBREVIATION = re.compile(
    r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|Gen|Col|Capt|Lt|Sgt|Rev|Hon|Gov|Sen|Rep|vs|etc|e\.g|i\.e|cf|No|Nos|Vol|pp|Fig|Eq|"
    r"approx|Inc|Ltd|Co|Corp|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.$"
)


def split_sentences(text: str) -> list[str]:
    """Splits running text, Chinese or English, into stripped sentences; nothing but white space is lost.

    Line ends separate. A full stop ends a sentence before white space and anything but a lower-case letter, unless it
    ends an abbreviation or an initial.
    """
    sentences: list[str] = []
    for line in text.split("\n"):
        start = 0
        for end in _SENTENCE_END.finditer(line):
            if end.group().startswith(".") and _ABBREVIATION.search(line, max(start, end.start() - 8), end.start() + 1):
                continue
            sentences.append(line[start : end.end()].strip())
            start = end.end()
        sentences.append(line[start:].strip())
    return [sentence for sentence in sentences if sentence]


def _file_documents(span: Span, counts: Counts, text_field: str) -> Iterator[list[str]]:
    with _open(span.path) as stream:
        if _is_json(span.path, stream):
            yield from _json_documents(stream, span, counts, text_field)
        else:
            yield from _plain_documents(stream, span, counts)


def _plain_documents(stream: io.BufferedReader, span: Span, counts: Counts) -> Iterator[list[str]]:
    position = _seek_document(stream, span)
    sentences: list[str] = []
    characters = 0
    in_document = False
    for line in _lines(stream, position, counts):
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
                in_document = True  # white space without end is no blank line, neither here nor to _seek_document
            continue
        if characters + len(text) > MAX_DOCUMENT_CHARACTERS and sentences:
            counts.split_documents += 1
            yield sentences
            sentences, characters = [], 0
        if line.whole and len(text) <= MAX_LINE_CHARACTERS:
            sentences.append(text)
        else:
            sentences += _short_sentences(text)
            counts.split_lines += not line.continues
        characters += len(text)
        in_document = True
    if sentences:
        yield sentences


def _seek_document(stream: io.BufferedReader, span: Span) -> int:
    """Moves to the first line from span.start on that belongs to no document begun before it; returns its offset."""
    if span.start == 0:
        return 0
    position = _seek_line(stream, span.start)
    at_boundary = _line_before_is_blank(stream, position)
    stream.seek(position)
    while not at_boundary and (span.end is None or position < span.end):
        part = stream.readline(_READ_BYTES)
        if not part:
            break
        at_boundary = part.endswith(b"\n") and _is_blank(part)
        while part and not part.endswith(b"\n"):
            part = stream.readline(_READ_BYTES)
        position = stream.tell()
    return position


def _seek_line(stream: io.BufferedReader, start: int) -> int:
    """Moves to the first line that begins at `start` or later; returns its offset."""
    if start == 0:
        return 0
    stream.seek(start - 1)
    while (part := stream.readline(_READ_BYTES)) and not part.endswith(b"\n"):
        pass
    return stream.tell()


def _line_before_is_blank(stream: io.BufferedReader, position: int) -> bool:
    """Whether the line that ends at `position` is blank by the measure of `_lines`."""
    size = 256
    while True:
        start = max(0, position - size)
        stream.seek(start)
        _, newline, line = stream.read(position - start).removesuffix(b"\n").rpartition(b"\n")
        if newline or start == 0:
            return len(line) < _READ_BYTES and _is_blank(line if newline else line.removeprefix(codecs.BOM_UTF8))
        if size > _READ_BYTES:
            return False
        size *= 8


def _is_blank(line: bytes) -> bool:
    return not line.decode("utf-8", "replace").replace("\0", "").strip()


class _Line(NamedTuple):
    """A line or, above _READ_BYTES, one of its parts; without the line end."""

    text: str
    offset: int  # of the whole line
    size: int  # bytes
    continues: bool  # is a later part of a line
    whole: bool


def _lines(stream: io.BufferedReader, offset: int, counts: Counts) -> Iterator[_Line]:
    position = offset
    continues = False
    remains = b""
    while raw := stream.readline(_READ_BYTES):
        size = len(raw)
        ends = raw.endswith(b"\n") or size < _READ_BYTES
        if remains or not ends:
            raw = remains + raw
            cut = len(raw) if ends else _last_whole_character(raw)
            raw, remains = raw[:cut], raw[cut:]
        text = _decode(raw, counts, at_file_start=position == 0)
        counts.crlf_lines += text.endswith("\r\n")
        yield _Line(text.rstrip("\r\n"), offset, size, continues, ends and not continues)
        position += size
        continues = not ends
        if ends:
            offset = position


def _last_whole_character(raw: bytes) -> int:
    """Returns where to cut `raw` so that no character of UTF-8 is divided."""
    for back in range(1, 4):
        if raw[-back] >= 0xC0:
            return len(raw) - back
        if raw[-back] < 0x80:
            break
    return len(raw)


def _decode(raw: bytes, counts: Counts, *, at_file_start: bool = False) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("utf-8", "replace")
        counts.invalid_sequences += text.count("\ufffd") - raw.count("\ufffd".encode())
    if at_file_start and text.startswith(_BOM):
        counts.byte_order_marks += 1
        text = text[1:]
    return _without_nuls(text, counts)


def _without_nuls(text: str, counts: Counts) -> str:
    if "\0" not in text:
        return text
    counts.nul_characters += text.count("\0")
    return text.replace("\0", "")


def _short_sentences(text: str) -> Iterator[str]:
    """Splits an overlong line at its sentences, and what is still too long at a space or, lacking one, anywhere."""
    for sentence in split_sentences(text):
        rest = sentence
        while len(rest) > MAX_LINE_CHARACTERS:
            cut = rest.rfind(" ", MAX_LINE_CHARACTERS // 2, MAX_LINE_CHARACTERS)
            cut = MAX_LINE_CHARACTERS if cut < 0 else cut
            yield rest[:cut].rstrip()
            rest = rest[cut:].lstrip()
        yield rest


def _json_documents(stream: io.BufferedReader, span: Span, counts: Counts, text_field: str) -> Iterator[list[str]]:
    offset = _seek_line(stream, span.start)
    while (span.end is None or offset < span.end) and (raw := stream.readline()):
        line = _decode(raw, counts, at_file_start=offset == 0).strip()
        if line:
            try:
                text = _json_text(line, text_field)
            except ValueError as error:
                raise app.UsageError(f"{span.path}, line {_line_number(span.path, offset)}: {error}") from None
            yield _document(text, counts)
        counts.bytes += len(raw)
        offset += len(raw)


def _json_text(line: str, text_field: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error}); expected one object a line") from None
    if not isinstance(row, dict):
        raise ValueError(f"a JSON {type(row).__name__}; expected one object a line")
    if not isinstance(row.get(text_field), str):
        raise ValueError(f"no text under {text_field!r} among {sorted(row)}; set the field's name with --text_field")
    return row[text_field]


def _document(text: str, counts: Counts) -> list[str]:
    """Returns the sentences of running text."""
    if _SURROGATE.search(text):
        # JSON can spell half of a pair, which no UTF-8 file can hold.
        text, replaced = _SURROGATE.subn("\ufffd", text)
        counts.invalid_sequences += replaced
    sentences = split_sentences(_without_nuls(text, counts))
    counts.split_lines += sum(len(sentence) > MAX_LINE_CHARACTERS for sentence in sentences)
    return [short for sentence in sentences for short in _short_sentences(sentence)]


def _line_number(path: Path, offset: int) -> int:
    with _open(path) as stream:
        number = 1
        while offset and (block := stream.read(min(offset, _READ_BYTES))):
            number += block.count(b"\n")
            offset -= len(block)
    return number


def _whole_lines(path: Path, counts: Counts) -> Iterator[str]:
    with _open(path) as stream:
        for number, raw in enumerate(stream):
            text = _decode(raw, counts, at_file_start=number == 0)
            counts.bytes += len(raw)
            counts.crlf_lines += text.endswith("\r\n")
            yield text.rstrip("\r\n")


@contextlib.contextmanager
def _open(path: Path) -> Iterator[io.BufferedReader]:
    """Opens a file for reading decompressed bytes; damage found while reading becomes one line."""
    with path.open("rb") as file:
        compression = _compression(file)
        damage: tuple[type[Exception], ...] = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)
        if not compression:
            raw: Any = file
        elif compression == "zst":
            raw = _ZstdFile(file)
        else:
            # bz2 reports damage as a bare OSError.
            damage = (OSError, *damage) if compression == "bz2" else damage
            raw = {"gz": gzip.open, "xz": lzma.open, "bz2": bz2.open}[compression](file)
        try:
            stream = io.BufferedReader(raw, _READ_BYTES)
            if stream.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise app.UsageError(f"{path}: UTF-16 text; expected UTF-8, convert it with iconv -f UTF-16 -t UTF-8")
            yield stream
        except damage as error:
            raise app.UsageError(f"{path}: the compressed file is damaged or cut short ({error})") from error


def _compression(file: io.BufferedReader) -> str:
    """Returns the name of the compression that the first bytes tell, or an empty string."""
    head = file.read(16)
    file.seek(0)
    match = _MAGIC.match(head)
    return match.lastgroup or "" if match else ""


class _ZstdFile(io.RawIOBase):
    """Decompresses zstd frame by frame; unlike zstandard's own reader it reports a file that is cut short."""

    def __init__(self, file: io.BufferedReader):
        import zstandard

        self._file = file
        self._decompressor = zstandard.ZstdDecompressor()
        self._error = zstandard.ZstdError
        self._frame: Any = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            if not self._input:
                self._input = self._file.read(_READ_BYTES // 8)
                if not self._input:
                    if self._frame is not None:
                        raise EOFError("zstd frame without an end")
                    return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            try:
                self._output = memoryview(self._frame.decompress(self._input))
            except self._error as error:
                raise EOFError(str(error)) from error
            self._input = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size


def _is_json(path: Path, stream: io.BufferedReader) -> bool:
    suffixes = [suffix for suffix in path.suffixes if suffix not in _COMPRESSION_SUFFIXES]
    if suffixes and suffixes[-1] in _JSON_SUFFIXES:
        return True
    return re.match(rb'(?:\xef\xbb\xbf)?\s*\{\s*"[^"\n]*"\s*:', stream.peek(1)) is not None


def _is_tfds(path: Path) -> bool:
    return str(path).startswith(_TFDS)


def _tfds_builder(path: Path) -> tuple[Any, str]:
    """Returns the prepared builder and the split of `tfds:NAME` or `tfds:NAME@SPLIT` (by default train)."""
    name, _, split = str(path).removeprefix(_TFDS).partition("@")
    try:
        import tensorflow_datasets as tfds

        try:
            builder = tfds.builder(name)
        except ValueError as error:
            # Their own message lists all of a thousand names.
            if type(error).__name__ != "DatasetNotFoundError":
                raise
            hint = (
                did_you_mean(f"{_TFDS}{name}", [f"{_TFDS}{known}" for known in tfds.list_builders()])
                or "; see tensorflow.org/datasets/catalog"
            )
            raise app.UsageError(f"{path}: tensorflow-datasets has no set of this name{hint}") from None
        builder.download_and_prepare()
    except ModuleNotFoundError as error:
        # Or what a set is prepared with, which tfds imports when it is needed.
        package = str(error.name).partition(".")[0]
        raise app.UsageError(f"{path} needs {package}; pip install {package.replace('_', '-')}") from error
    split = split or "train"
    if split not in builder.info.splits:
        raise app.UsageError(f"{path}: no split {split!r}; choose one of {', '.join(sorted(builder.info.splits))}")
    return builder, split


def _tfds_documents(span: Span, counts: Counts, text_field: str) -> Iterator[list[str]]:
    import tensorflow_datasets as tfds

    builder, split = _tfds_builder(span.path)
    if text_field not in builder.info.features:
        fields = ", ".join(sorted(builder.info.features))
        raise app.UsageError(f"{span.path}: no feature {text_field!r}; set one of {fields} with --text_field")
    examples = builder.as_dataset(
        split=tfds.core.ReadInstruction(split, from_=span.start, to=span.end, unit="abs"), shuffle_files=False
    )
    for example in tfds.as_numpy(examples):
        raw = example[text_field]
        counts.bytes += len(raw)
        yield _document(_decode(raw, counts), counts)
