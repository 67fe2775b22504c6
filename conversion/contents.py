"""What a file is, by its first bytes: an archive, weights, or neither. Names are not believed."""

from __future__ import annotations

import os
import struct
import tarfile
from pathlib import Path
from typing import IO

ARCHIVES = ("zip", "tar", "gzip", "bzip2", "xz")
UNREAD = ("7z", "rar", "zstd")
"""Archives that the standard library cannot read."""
WEIGHTS = {"torch": ".bin", "safetensors": ".safetensors"}
"""Kinds of weights, and the end that a file of theirs has."""
_SIGNATURES = {
    b"\x1f\x8b\x08": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
    b"\x28\xb5\x2f\xfd": "zstd",
}
MOST_DIRECTORY_BYTES = 16 * 2**20
"""Of a zip's list of members: 10,000 of them, the most that are unpacked, with long names take less."""
_END, _END_64, _LOCATOR_64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")


def kind_of(path: Path) -> str:
    """Return `zip`, `tar`, another name of this file's tables, or an empty text; raises `OSError`."""
    with path.open("rb") as stream:
        head = stream.read(tarfile.BLOCKSIZE)
        if found := next((kind for start, kind in _SIGNATURES.items() if head.startswith(start)), ""):
            return found
        if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
            # PyTorch's files are zips too, with their pickle in a folder.
            listed = zip_directory(stream)
            return "torch" if listed is not None and b"/data.pkl" in listed[0] else "zip"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "torch"
    if len(head) > 8 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= 100_000_000:
        return "safetensors"
    return "tar" if _is_header(head) else ""


def zip_directory(stream: IO[bytes]) -> tuple[bytes, int] | None:
    """Return a zip's list of members as it lies there, and their number; None where it has none or one too long."""
    size = stream.seek(0, os.SEEK_END)
    start = max(0, size - _END.size - 0xFFFF)
    stream.seek(start)
    tail = stream.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        return None
    count, length = _END.unpack_from(tail, at)[4:6]
    end = start + at
    # Some writers, PyTorch's among them, add the records for large files to small ones too.
    stream.seek(max(0, end - _LOCATOR_64.size - _END_64.size))
    record = stream.read(_END_64.size + _LOCATOR_64.size)
    if record[_END_64.size :].startswith(b"PK\x06\x07") and record.startswith(b"PK\x06\x06"):
        count, length = _END_64.unpack_from(record)[7:9]
        end -= len(record)
    if length > min(end, MOST_DIRECTORY_BYTES):
        return None
    stream.seek(end - length)
    return stream.read(length), count


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError, OverflowError):
        return False
    return True
