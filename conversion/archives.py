"""Unpack zip and tar archives of strangers: every member is checked before it is written, every byte counted.

The standard library reads the formats; what it would do with links, with names that lead elsewhere or with a file that
unpacks to more than a disk holds is not left to it. Nothing is written outside of a temporary folder, which becomes
the result in one step:

    FOLDER/files/...        as in the archive
    FOLDER/listing.json     {"archive": {"bytes": 4096, "sha256": "..."}, "files": {"model/vocab.txt": 109540}}
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import json
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypedDict

from absl.app import UsageError

from conversion.contents import ARCHIVES, MOST_DIRECTORY_BYTES, UNREAD, kind_of, zip_directory
from ground import cache
from ground.documents import read_json
from ground.files import naming, write_atomically
from ground.outputs import MAX_NAME_BYTES, plain_file

MOST_MEMBERS = 10_000
"""A checkpoint has some hundreds of files where every host of a large run wrote its own."""
MOST_PATH_BYTES, MOST_DEPTH = 1024, 32
"""The run folder of a published model is five folders deep."""
MOST_RATIO = 100
"""Weights pack to nine tenths and text to a tenth; zeros pack to a thousandth and below."""
FREE_OF_RATIO_BYTES = 64 * 2**20
"""So much may come out of any archive: a small file of zeros is no attack."""
_LISTING, _FILES, _UNFINISHED = "listing.json", "files", ".unpacking-"
_PIECE = 2**20
_MOST_HEADER_BYTES, _MOST_HEADERS_BYTES = 8192, 65_536
_MOST_LISTING_BYTES = 32 * 2**20
# Python's own reader takes the square of the time for numbers of so many digits in a header.
_LONG_NUMBER = re.compile(rb"\d{200}")
_MOST_XZ_MEMORY = 256 * 2**20  # xz -9 needs a quarter
_DRIVE = re.compile(r"[A-Za-z]:")
_OF_MAC_OS = ("__MACOSX", ".DS_Store")
_REPACK = "pack the folder anew, as .tar.gz or .zip"


class DamagedArchiveError(UsageError):
    """An archive that is not whole, or that no packing tool wrote in this way."""


class _Listing(TypedDict):
    archive: dict[str, Any]
    files: dict[str, int]


class _RefusedError(Exception):
    """What is wrong with an archive, and how to mend it."""

    def __init__(self, reason: str, fix: str = _REPACK):
        super().__init__(f"{reason}; {fix}")


class _BrokenError(Exception):
    """Where the bytes of an archive stop making sense."""


def is_archive(path: Path) -> bool:
    """Return whether a file is an archive that can be unpacked; raises `UsageError` for another kind of archive."""
    kind = kind_of(path)
    if kind in UNREAD:
        raise UsageError(f"{path} is a {kind} archive, which is not read; unpack it, or {_REPACK}")
    return kind in ARCHIVES


def unpack(archive: Path, *, folder: Path | None = None, called: str = "") -> Path:
    """Return the folder with what is in an archive; what an earlier call unpacked is used again.

    Args:
        archive: zip or tar, the latter as it is or packed by gzip, bzip2 or xz, whatever its name.
        folder: where the content goes; by default a folder of the cache for this very file.
        called: its name in messages.

    Returns:
        The content; where all of it lies in one folder, that folder.

    Raises:
        UsageError: the archive holds what is not unpacked (links, devices, names that lead elsewhere, too much).
        DamagedArchiveError: it is not whole.
        OSError: it cannot be read, or its content not be written.
    """
    status, called = archive.stat(), called or str(archive)
    facts = {"bytes": status.st_size, "sha256": cache.digest(archive)}
    if folder is None:
        key = f"{os.path.realpath(archive)}\n{status.st_size}\n{status.st_mtime_ns}\n{facts['sha256']}"
        folder = cache.entry("archives", archive.name, key=key) / "content"
    if not _is_intact(folder, facts):
        with cache.alone(folder.parent, f"the content of {called}"):
            if not _is_intact(folder, facts):
                try:
                    _unpack_anew(archive, folder, facts)
                except _BrokenError as error:
                    raise DamagedArchiveError(
                        f"{called} is damaged or cut short ({error}); copy or download it again"
                    ) from None
                except _RefusedError as error:
                    raise UsageError(f"{called} is not unpacked: {error}") from None
    return _innermost(folder / _FILES)


def _innermost(folder: Path) -> Path:
    """Return the folder below which all lies, so that the archive of a folder is that folder."""
    inside = list(folder.iterdir())
    while len(inside) == 1 and inside[0].is_dir():
        (folder,) = inside
        inside = list(folder.iterdir())
    return folder


def _is_intact(folder: Path, facts: dict[str, Any]) -> bool:
    """Return whether a folder holds all that was unpacked from this archive, in its size."""
    try:
        listing = read_json(folder / _LISTING, _Listing, what="the listing of an archive")
    except (OSError, UsageError):
        return False
    files = folder / _FILES
    return listing["archive"] == facts and all(
        plain_file(files / name, size) for name, size in listing["files"].items()
    )


def _unpack_anew(archive: Path, folder: Path, facts: dict[str, Any]) -> None:
    """Replace `folder`, which nobody else writes to now, by what is in the archive."""
    for left in folder.parent.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left)
    temporary = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder.parent))
    try:
        (temporary / _FILES).mkdir()
        writer = _Writer(temporary / _FILES, archive.stat().st_size)
        kind = kind_of(archive)
        with archive.open("rb") as stream:
            if kind == "zip":
                _unpack_zip(stream, writer)
            else:
                _unpack_tar(stream, kind, writer)
        if not writer.files:
            raise _RefusedError("it holds no file")
        content = json.dumps({"archive": facts, "files": writer.files}, ensure_ascii=False)
        write_atomically(temporary / _LISTING, content, sync=False)
        for path in (temporary, temporary / _FILES):
            path.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# -- names and sizes ---------------------------------------------------------------------------------------------------


class _Writer:
    """Writes members below a folder that was empty; refuses by name, number and size.

    Attributes:
        files: what was written, with sizes.
    """

    def __init__(self, folder: Path, packed: int):
        self.files: dict[str, int] = {}
        self._folder, self._packed, self._unpacked = folder, packed, 0
        self._members = 0
        self._room = cache.room(folder)
        self._taken: dict[str, tuple[str, bool]] = {}  # path without case -> (path, whether it is a folder)

    def claim(self, name: str, *, is_folder: bool) -> str | None:
        """Return the path of a member below the folder, None for what macOS adds; raises `_RefusedError`."""
        self._members += 1
        if self._members > MOST_MEMBERS:
            raise _RefusedError(f"it has more than {MOST_MEMBERS:,} members", "pack the files of one checkpoint alone")
        parts = _parts(name)
        for depth in range(1, len(parts) + 1):
            path, folder_here = "/".join(parts[:depth]), depth < len(parts) or is_folder
            # As on file systems that know no case, and write accents in one way.
            key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
            if key not in self._taken:
                self._taken[key] = (path, folder_here)
            elif self._taken[key] != (path, True) or not folder_here:
                raise _RefusedError(
                    f"{_quoted(name)} and {_quoted(self._taken[key][0])} are one name for a file system"
                )
        if any(part in _OF_MAC_OS or part.startswith("._") for part in parts):
            return None
        return "/".join(parts)

    def check(self, size: int) -> None:
        """Raise `_RefusedError` where so many bytes more are too many, or the disk has no room for them."""
        total = self._unpacked + size
        if total > cache.MOST_BYTES:
            most = f"{cache.MOST_BYTES / 1e9:,.0f} GB"
            raise _RefusedError(f"it unpacks to more than {most}", "pack the files of one checkpoint alone")
        if total > self._room:
            reason = (
                f"it unpacks to {total / 1e9:,.1f} GB or more, and {cache.root()} has room for {self._room / 1e9:,.1f}"
            )
            raise _RefusedError(reason, cache.MAKE_ROOM)

    def count(self, size: int) -> None:
        """Count bytes that came out of the archive; raises `_RefusedError` where they cannot be a checkpoint's."""
        self.check(size)
        self._unpacked += size
        if self._unpacked > FREE_OF_RATIO_BYTES and self._unpacked > MOST_RATIO * self._packed:
            raise _RefusedError(
                f"its {self._packed:,} bytes unpack to more than {MOST_RATIO} times as many, as no weights do"
            )

    def make_folder(self, path: str | None) -> None:
        """Make a folder that `claim` named, and those above it."""
        if path:
            folder = self._folder
            for part in path.split("/"):
                folder = folder / part
                if not folder.exists():
                    folder.mkdir()
                    folder.chmod(0o755)

    def write(self, path: str | None, pieces: Iterator[bytes]) -> None:
        """Write a file that `claim` named; without a name its bytes are only counted."""
        if path is None:
            for _ in pieces:
                pass
            return
        target = self._folder / path
        self.make_folder(path.rpartition("/")[0])
        with naming(target), target.open("xb") as stream:
            for piece in pieces:
                stream.write(piece)
            self.files[path] = stream.tell()
        target.chmod(0o644)


def _parts(name: str) -> list[str]:
    """Return the parts of a member's path; raises `_RefusedError` for a path that is not below its folder."""
    shown = _quoted(name)
    if name.startswith("/") or _DRIVE.match(name):
        raise _RefusedError(f"{shown} is a path from the root, which would leave the folder")
    if "\\" in name:
        raise _RefusedError(f"{shown} has a backslash, which some systems take for a folder's end")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _RefusedError(f"{shown} leads to a folder above, out of its own")
    try:
        lengths = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        raise _RefusedError(f"{shown} is no UTF-8") from None
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        raise _RefusedError(f"{shown} has a control character")
    if max(lengths, default=0) > MAX_NAME_BYTES or sum(lengths) > MOST_PATH_BYTES or len(parts) > MOST_DEPTH:
        most = f"{MAX_NAME_BYTES} bytes a name, {MOST_PATH_BYTES} in all, {MOST_DEPTH} folders"
        raise _RefusedError(f"{shown} is too long: at most {most}")
    return parts


def _quoted(name: str) -> str:
    return ascii(name) if len(name) <= 60 else ascii(name[:60])[:-1] + "...'"


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Turn what the readers of the standard library raise for damage into `_BrokenError`."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError) as error:
        raise _BrokenError(_reason(error)) from None
    except (ValueError, ArithmeticError, LookupError, RecursionError, NotImplementedError) as error:
        raise _BrokenError(_reason(error)) from None
    except OSError as error:
        # Offsets that lead before the file, and what bz2 raises; a disk that fails gives another number.
        if error.errno in (None, errno.EINVAL):
            raise _BrokenError(_reason(error)) from None
        raise


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0][:120] or type(error).__name__


# -- zip ---------------------------------------------------------------------------------------------------------------


def _unpack_zip(stream: IO[bytes], writer: _Writer) -> None:
    listed = zip_directory(stream)
    if listed is None:
        raise _BrokenError(f"it has no list of members, or one of more than {MOST_DIRECTORY_BYTES / 2**20:.0f} MiB")
    with _reading():
        opened = zipfile.ZipFile(stream)
    with opened:
        members = opened.infolist()
        if len(members) != listed[1]:
            raise _BrokenError(f"{listed[1]:,} members are announced, {len(members):,} are there")
        # All are looked at before the first is written.
        named = [(member, _claim_zip(member, writer)) for member in members]
        writer.check(sum(member.file_size for member in members))
        for member, path in named:
            if _is_folder(member):
                writer.make_folder(path)
            else:
                writer.write(path, _pieces(opened, member, writer))


def _is_folder(member: zipfile.ZipInfo) -> bool:
    # `ZipInfo.is_dir` fails for a name that is empty, or empty up to a NUL.
    return member.orig_filename.endswith("/")


def _claim_zip(member: zipfile.ZipInfo, writer: _Writer) -> str | None:
    """Return where a member goes; raises `_RefusedError`."""
    shown, kind = _quoted(member.orig_filename), stat.S_IFMT(member.external_attr >> 16)
    path = writer.claim(member.orig_filename, is_folder=_is_folder(member))
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "symbolic link" if kind == stat.S_IFLNK else "device, pipe or socket"
        raise _RefusedError(f"{shown} is a {what}", "pack the files themselves, as zip does by default")
    disagree = kind and (kind == stat.S_IFDIR) != _is_folder(member)
    if disagree or (_is_folder(member) and member.file_size):
        raise _RefusedError(f"{shown} is both a file and a folder")
    if member.flag_bits & 0x2041:
        raise _RefusedError(f"{shown} is encrypted", "pack it anew without a password")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _RefusedError(f"{shown} is packed by method {member.compress_type}; expected deflate or none")
    if path == "" and not _is_folder(member):
        raise _RefusedError(f"{shown} is no name of a file")
    return path


def _pieces(opened: zipfile.ZipFile, member: zipfile.ZipInfo, writer: _Writer) -> Iterator[bytes]:
    """Yield the content of a member; raises `_BrokenError` where size or checksum are others than announced."""
    with _reading():
        content = opened.open(member)
    size = 0
    with content:
        while True:
            with _reading():
                piece = content.read(_PIECE)
            if not piece:
                break
            size += len(piece)
            writer.count(len(piece))
            yield piece
    if size != member.file_size:
        raise _BrokenError(f"{_quoted(member.filename)} has {size:,} bytes, {member.file_size:,} are announced")


# -- tar ---------------------------------------------------------------------------------------------------------------


class _Gzip:
    """zlib's decoder with the interface of those of bz2 and lzma."""

    def __init__(self) -> None:
        self._decoder, self._left = zlib.decompressobj(wbits=31), b""

    def decompress(self, data: bytes, most: int) -> bytes:
        piece = self._decoder.decompress(self._left + data, most)
        self._left = self._decoder.unconsumed_tail
        return piece

    @property
    def needs_input(self) -> bool:
        return not self._left

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data


_DECODERS: dict[str, Callable[[], Any]] = {
    "gzip": _Gzip,
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MOST_XZ_MEMORY),
}


class _TarStream:
    """The bytes of a tar file, unpacked on the way, forwards only; `tarfile` reads its headers from here.

    Attributes:
        last: what `tarfile` read last.
    """

    def __init__(self, stream: IO[bytes], kind: str, writer: _Writer):
        self.last = b""
        self._stream, self._new_decoder, self._writer = stream, _DECODERS.get(kind), writer
        self._decoder: Any = None
        self._input, self._ready, self._at = b"", b"", 0
        self._since_member, self._headers = 0, 0

    @property
    def is_packed(self) -> bool:
        return self._new_decoder is not None

    def read(self, size: int) -> bytes:
        """Return a header, for `tarfile`; raises `_RefusedError` for one that no packing tool writes."""
        self._since_member += size
        self._headers += size
        if size > _MOST_HEADER_BYTES or self._since_member > _MOST_HEADERS_BYTES or self._headers > _MOST_LISTING_BYTES:
            raise _RefusedError("a header of it is larger than names need")
        parts = []
        while size > 0 and (piece := self.some(size)):
            parts.append(piece)
            size -= len(piece)
        self.last = b"".join(parts)
        if len(self.last) > tarfile.BLOCKSIZE and _LONG_NUMBER.search(self.last):
            raise _RefusedError("a header of it has a number of 200 digits")
        return self.last

    def some(self, most: int) -> bytes:
        """Return at least one byte and at most `most`; nothing at the end."""
        if not self._ready:
            self._ready = self._piece()
        piece, self._ready = self._ready[:most], self._ready[most:]
        self._at += len(piece)
        return piece

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> None:
        """Pass over content up to a position."""
        if position < self._at:
            raise _BrokenError("a member begins before the end of another")
        while self._at < position and self.some(min(position - self._at, _PIECE)):
            pass

    def drain(self) -> None:
        """Read what is left, so that the checksum at its end is compared."""
        while self.some(_PIECE):
            pass

    def begin_member(self) -> None:
        """Forget the size of the headers of the members before."""
        self._since_member = 0

    def _piece(self) -> bytes:
        if self._new_decoder is None:
            piece = self._stream.read(_PIECE)
        else:
            with _reading():
                piece = self._decoded()
        self._writer.count(len(piece))
        return piece

    def _decoded(self) -> bytes:
        assert self._new_decoder is not None
        while True:
            if self._decoder is None:
                # A file may hold several packed parts, and zeros after the last.
                while not (rest := self._input.lstrip(b"\0")):
                    self._input = self._stream.read(_PIECE)
                    if not self._input:
                        return b""
                self._input, self._decoder = rest, self._new_decoder()
            elif self._decoder.needs_input:
                self._input = self._stream.read(_PIECE)
            data, self._input = self._input, b""
            asked = not data and self._decoder.needs_input
            piece = self._decoder.decompress(data, _PIECE)
            if self._decoder.eof:
                self._input, self._decoder = self._decoder.unused_data, None
            elif asked and not piece:
                raise EOFError("the end is missing")
            if piece:
                return piece


def _unpack_tar(stream: IO[bytes], kind: str, writer: _Writer) -> None:
    source = _TarStream(stream, kind, writer)
    with _reading():
        opened = tarfile.TarFile(mode="r", fileobj=source, encoding="utf-8", errors="surrogateescape")  # pyright: ignore[reportArgumentType]
    while True:
        with _reading():
            member = opened.next()
        if member is None:
            break
        source.begin_member()
        path = _claim_tar(member, writer)
        if member.isdir():
            writer.make_folder(path)
            continue
        source.seek(member.offset_data)
        writer.check(member.size)
        writer.write(path, _content(source, member))
    # A tar file ends in zeros; `tarfile` takes any nonsense, and the end of the file, for it.
    if source.last != bytes(tarfile.BLOCKSIZE) and (source.last or not source.is_packed):
        raise _BrokenError("a header is damaged, or the end is missing")
    source.drain()


def _claim_tar(member: tarfile.TarInfo, writer: _Writer) -> str | None:
    """Return where a member goes; raises `_RefusedError`, or `_BrokenError` for an impossible size."""
    shown = _quoted(member.name)
    path = writer.claim(member.name, is_folder=member.isdir())
    kinds = {"symbolic link": member.issym(), "hard link": member.islnk(), "device or a pipe": member.isdev()}
    if kind := next((kind for kind, is_one in kinds.items() if is_one), ""):
        fix = "pack the files themselves (tar --dereference --hard-dereference)" if "link" in kind else _REPACK
        raise _RefusedError(f"{shown} is a {kind}", fix)
    if not member.isdir() and (member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse()):
        raise _RefusedError(f"{shown} is no plain file (type {member.type!r})", "pack it anew without --sparse")
    if member.size < 0 or (member.isdir() and member.size):
        raise _BrokenError(f"{shown} has {member.size:,} bytes")
    if path == "" and not member.isdir():
        raise _RefusedError(f"{shown} is no name of a file")
    return path


def _content(source: _TarStream, member: tarfile.TarInfo) -> Iterator[bytes]:
    left = member.size
    while left:
        piece = source.some(min(left, _PIECE))
        if not piece:
            raise _BrokenError(f"{_quoted(member.name)} is cut short")
        left -= len(piece)
        yield piece
