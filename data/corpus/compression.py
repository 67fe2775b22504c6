"""Files of any compression as streams of their decompressed bytes."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl.app import UsageError

from data.corpus import limits
from data.corpus.encodings import START, UTF8, Entry, Report, Utf8Stream, not_encoded

SUFFIXES = {".gz", ".xz", ".zst", ".bz2"}
# Long enough that no text begins with them by chance.
_MAGIC = re.compile(
    rb"(?P<gz>\x1f\x8b\x08)|(?P<xz>\xfd7zXZ\0)|(?P<bz2>BZh[1-9](?:1AY&SY|\x17rE8P\x90))|(?P<zst>\x28\xb5\x2f\xfd)"
)


def nothing(size: int) -> None:
    """Take no note of what was read."""
    del size


@contextlib.contextmanager
def open_text(
    path: Path, encoding: str = UTF8, entry: Entry = START, report: Report = nothing
) -> Iterator[io.BufferedReader]:
    """Open a file for reading its text, decompressed, as bytes of UTF-8.

    Args:
        path: the file.
        encoding: of the text, after decompression.
        entry: where a seek may begin from (`data.corpus.encodings`).
        report: is told of further bytes read.

    Raises `UsageError` where the compressed file is damaged, cut short or a bomb, also while it is read, and for UTF-16
    that is not asked for.
    """
    with open_bytes(path, report) as stream:
        if encoding == UTF8:
            if stream.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise UsageError(f"{path}: UTF-16 text; give --encoding=utf-16")
            yield stream
            return
        try:
            raw: Any = Utf8Stream(stream, encoding, entry)
            yield io.BufferedReader(raw, limits.READ_BYTES)
        except UnicodeError as error:
            raise not_encoded(path, encoding, error) from None


@contextlib.contextmanager
def open_bytes(path: Path, report: Report = nothing) -> Iterator[io.BufferedReader]:
    """Open a file for reading its decompressed bytes; raises as `open_text` does."""
    with path.open("rb") as file:
        compression = compression_of(file)
        damage: tuple[type[Exception], ...] = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)
        if not compression:
            raw: Any = file
        elif compression == "zst":
            raw = _ZstdFile(file)
        else:
            # bz2 reports damage as an OSError, without a class of its own.
            damage = (OSError, *damage) if compression == "bz2" else damage
            raw = {"gz": gzip.open, "xz": lzma.open, "bz2": bz2.open}[compression](file)
        if compression or report is not nothing:
            raw = _Watched(raw, file, path, report)
        try:
            yield io.BufferedReader(raw, limits.READ_BYTES)
        except damage as error:
            raise UsageError(f"{path}: the compressed file is damaged or cut short ({error})") from error


class _Watched(io.RawIOBase):
    """Reports what is read of a file, and stops where compressed data unfolds to more than text can."""

    def __init__(self, raw: Any, file: io.BufferedReader, path: Path, report: Report):
        self._raw, self._file, self._path, self._report = raw, file, path, report
        self._bounded = raw is not file
        self._unpacked, self._reported = 0, file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._raw.seekable()

    def seek(self, offset: int, whence: int = 0) -> int:
        place = self._raw.seek(offset, whence)
        self._unpacked, self._reported = place, self._file.tell()
        return place

    def tell(self) -> int:
        return self._raw.tell()

    def readinto(self, buffer: Any) -> int:
        size = self._raw.readinto(buffer)
        self._unpacked += size
        packed = self._file.tell()
        self._report(packed - self._reported)
        self._reported = packed
        if self._bounded and self._unpacked > max(limits.MIN_BOMB_BYTES, limits.MAX_COMPRESSION * packed):
            raise UsageError(
                f"{self._path}: {packed:,} compressed bytes made over {self._unpacked:,}; text shrinks to no less than "
                f"1/{limits.MAX_COMPRESSION}: if it is text nevertheless, decompress it and give the file"
            )
        return size


def compression_of(file: io.BufferedReader) -> str:
    """Return the compression by the first bytes: "gz", "xz", "bz2", "zst" or an empty string."""
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
                self._input = self._file.read(limits.READ_BYTES // 8)
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
