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

SUFFIXES = {".gz", ".xz", ".zst", ".bz2"}
# Long enough that no text begins with them by chance.
_MAGIC = re.compile(
    rb"(?P<gz>\x1f\x8b\x08)|(?P<xz>\xfd7zXZ\0)|(?P<bz2>BZh[1-9](?:1AY&SY|\x17rE8P\x90))|(?P<zst>\x28\xb5\x2f\xfd)"
)


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for reading decompressed bytes.

    Raises `UsageError` where the compressed file is damaged or cut short, also while it is read, and for UTF-16.
    """
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
        try:
            stream = io.BufferedReader(raw, limits.READ_BYTES)
            if stream.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise UsageError(f"{path}: UTF-16 text; expected UTF-8, convert it with iconv -f UTF-16 -t UTF-8")
            yield stream
        except damage as error:
            raise UsageError(f"{path}: the compressed file is damaged or cut short ({error})") from error


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
