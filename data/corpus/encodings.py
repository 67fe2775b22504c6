"""Text of any encoding as a stream of UTF-8, so that what reads bytes, spans and lines knows UTF-8 alone.

Offsets are those of the UTF-8 stream: a text makes the same records whatever its encoding. A survey of a file tells its
length in UTF-8 and where a reader can enter: the state of the decoder every megabyte.
"""

from __future__ import annotations

import codecs
import functools
import io
import os
from bisect import bisect_right
from collections.abc import Callable
from encodings.aliases import aliases
from pathlib import Path
from typing import Any, NamedTuple

from absl.app import UsageError

from data.corpus import limits
from ground.words import did_you_mean

UTF8 = "utf-8"
# Codecs of Python that are not encodings of files of text.
_OTHER_CODECS = {"idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape"}
INVALID = "divan.invalid"
"""The error handler of this project, by its name."""
# What seeks back a little, to see the line before, finds it behind the entry of its span.
_MARGIN_BYTES = 1 << 14


def _as_invalid(error: UnicodeError) -> tuple[str | bytes, int]:
    """Turn every invalid sequence of any encoding into one byte that is no UTF-8, which the reader counts and mends."""
    if isinstance(error, UnicodeDecodeError):
        return "\udcff", error.end
    assert isinstance(error, UnicodeEncodeError)
    return b"\xff" * (error.end - error.start), error.end


codecs.register_error(INVALID, _as_invalid)


def find_encoding(name: str) -> str:
    """Return Python's name of an encoding of text; raises `UsageError` that names the nearest."""
    try:
        found = codecs.lookup(name)
        # Not public, yet the only mark of codecs such as zip and rot13.
        usable = getattr(found, "_is_text_encoding", True) and found.incrementaldecoder is not None
        if usable and found.name.replace("-", "_") not in _OTHER_CODECS and isinstance(b"".decode(name), str):
            # A byte-order mark is dropped and counted in plain UTF-8 too.
            return UTF8 if found.name == "utf-8-sig" else found.name
    except (LookupError, ValueError):
        pass
    hint = did_you_mean(name.lower(), {*aliases, *aliases.values()}) or "; see docs.python.org/3/library/codecs"
    raise UsageError(f"--encoding={name}: not an encoding that Python reads{hint}")


def not_encoded(path: Path, encoding: str, error: UnicodeError) -> UsageError:
    """Return the error for a file that a decoder gives up on: UTF-16 whose byte order neither name nor mark tells."""
    return UsageError(f"{path}: not {encoding} ({error}); try --encoding=utf-16-le or utf-16-be")


class Entry(NamedTuple):
    """A place where a decoder can go on.

    Attributes:
        text: bytes of UTF-8 before it.
        source: bytes of the file before it.
        state: of the decoder; None at the beginning.
    """

    text: int = 0
    source: int = 0
    state: tuple[bytes, int] | None = None


START = Entry()


def survey(path: Path, encoding: str) -> tuple[list[Entry], int]:
    """Return where a file that is not compressed can be entered, and its length as UTF-8; reads it once."""
    status = path.stat()
    try:
        return _survey(path, status.st_size, status.st_mtime_ns, encoding)
    except UnicodeError as error:
        raise not_encoded(path, encoding, error) from None


@functools.lru_cache(maxsize=1024)
def _survey(path: Path, size: int, changed: int, encoding: str) -> tuple[list[Entry], int]:
    del size, changed
    decoder = codecs.getincrementaldecoder(encoding)(INVALID)
    entries, text, source = [START], 0, 0
    with path.open("rb") as stream:
        while block := stream.read(limits.READ_BYTES):
            text += len(decoder.decode(block).encode(UTF8, INVALID))
            source += len(block)
            entries.append(Entry(text, source, decoder.getstate()))
    return entries, text + len(decoder.decode(b"", True).encode(UTF8, INVALID))


def entry_before(entries: list[Entry], start: int) -> Entry:
    """Return the last of the entries that is well before `start`, in bytes of UTF-8."""
    return entries[max(0, bisect_right(entries, start - _MARGIN_BYTES, key=lambda entry: entry.text) - 1)]


class Utf8Stream(io.RawIOBase):
    """Bytes of an encoding, read as UTF-8.

    Args:
        raw: the bytes; is moved only where this stream is.
        encoding: Python's name.
        entry: a place that a seek behind it begins from.
    """

    def __init__(self, raw: Any, encoding: str, entry: Entry = START):
        self._raw, self._encoding, self._entry = raw, encoding, entry
        self._begin(START, move=False)

    def _begin(self, entry: Entry, *, move: bool = True) -> None:
        if move:
            self._raw.seek(entry.source)
        self._decoder = codecs.getincrementaldecoder(self._encoding)(INVALID)
        if entry.state is not None:
            self._decoder.setstate(entry.state)
        self._at, self._ready, self._ended = entry.text, memoryview(b""), False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a byte of the UTF-8 stream, decoding up to there."""
        assert whence == os.SEEK_SET
        if offset < self._at:
            self._begin(self._entry if self._entry.text <= offset else START)
        elif self._at < self._entry.text <= offset:
            self._begin(self._entry)
        while self._at < offset and self._fill():
            self._take(min(len(self._ready), offset - self._at))
        return self._at

    def readinto(self, buffer: Any) -> int:
        if not self._fill():
            return 0
        part = self._take(min(len(buffer), len(self._ready)))
        buffer[: len(part)] = part
        return len(part)

    def _fill(self) -> bool:
        """Decode until there is something to read; return False at the end."""
        while not self._ready and not self._ended:
            block = self._raw.read(limits.READ_BYTES)
            self._ended = not block
            self._ready = memoryview(self._decoder.decode(block, self._ended).encode(UTF8, INVALID))
        return bool(self._ready)

    def _take(self, size: int) -> memoryview:
        part, self._ready = self._ready[:size], self._ready[size:]
        self._at += size
        return part


Report = Callable[[int], None]
"""Is told how many further bytes of the files, as they lie on the disk, were read."""
