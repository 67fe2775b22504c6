"""What is intact in a damaged TFRecord file, and a new file of it."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import mmap
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from absl.app import UsageError

from data.tfrecord.frames import FOOTER_BYTES, FRAME_BYTES, HEADER_BYTES, frame, masked_crc32c
from ground.files import open_new

DAMAGED_SUFFIX = ".damaged"
_SEARCH_BYTES = 1 << 16


@dataclass
class Scan:
    """The intact and the damaged parts of a TFRecord file.

    Attributes:
        intact: byte ranges of the serialized examples whose checksum holds.
        damaged: byte ranges, frames included, that hold no record whose checksum holds.
        damaged_headers: intact records whose length or its checksum is damaged.
    """

    intact: list[tuple[int, int]] = field(default_factory=list)
    damaged: list[tuple[int, int]] = field(default_factory=list)
    damaged_headers: int = 0


def scan(content: bytes | mmap.mmap) -> Scan:
    """Find every intact record of a TFRecord file, whatever else is damaged.

    Where a length cannot be trusted the next header is searched byte by byte. A damaged byte therefore costs at most
    the record that it is in, and none if it is in a header.
    """
    found, at, size = Scan(), 0, len(content)
    while at < size:
        length, header_intact = _header(content, at)
        end = at + FRAME_BYTES + length
        intact = _data_intact(content, at, end)
        if not intact and not (header_intact and (end == size or _header(content, end)[1])):
            # Either the length is wrong or bytes are missing or too many: the next header tells where this record ends.
            end = _next_header(content, at + 1)
            intact = _data_intact(content, at, end)
        if intact:
            found.damaged_headers += not header_intact
            found.intact.append((at + HEADER_BYTES, end - FOOTER_BYTES))
        else:
            found.damaged.append((at, end))
        at = end
    return found


def _header(content: bytes | mmap.mmap, at: int) -> tuple[int, bool]:
    """Return the length that a header announces, and whether its checksum holds."""
    header = content[at : at + HEADER_BYTES]
    if len(header) < HEADER_BYTES:
        return 0, False
    length, crc = struct.unpack("<QI", header)
    return length, masked_crc32c(header[:8]) == crc


def _data_intact(content: bytes | mmap.mmap, begin: int, end: int) -> bool:
    """Whether the checksum of the example in the frame [begin, end) holds."""
    if end > len(content) or end - begin < FRAME_BYTES:
        return False
    crc = int.from_bytes(content[end - FOOTER_BYTES : end], "little")
    return masked_crc32c(content[begin + HEADER_BYTES : end - FOOTER_BYTES]) == crc


def _next_header(content: bytes | mmap.mmap, begin: int) -> int:
    """Return the first position from `begin` on where a record with an intact header begins; else the end of the file.

    The CRC of the 8 bytes at every position is computed for a whole window at once, one table look-up a byte:

        raw      [b0, b1, b2, ...]
        crc[p]   of bytes p .. p + 7      stored[p]   of bytes p + 8 .. p + 11
        hits     the positions with crc == stored whose record also ends inside the file
    """
    for window in range(begin, len(content), _SEARCH_BYTES):
        raw = np.frombuffer(content[window : window + _SEARCH_BYTES + HEADER_BYTES - 1], np.uint8)
        count = len(raw) - HEADER_BYTES + 1
        if count <= 0:
            break
        crc = np.full(count, 0xFFFFFFFF, np.uint32)
        for i in range(8):
            crc = _CRC_TABLE[(crc ^ raw[i : i + count]) & np.uint32(0xFF)] ^ (crc >> np.uint32(8))
        crc = ~crc
        crc = ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)
        stored = np.zeros(count, np.uint32)
        for i in range(4):
            stored |= raw[8 + i : 8 + i + count].astype(np.uint32) << np.uint32(8 * i)
        for candidate in np.flatnonzero(crc == stored).tolist():
            at = window + candidate
            if at + FRAME_BYTES + _header(content, at)[0] <= len(content):
                return at
    return len(content)


def _crc_table() -> np.ndarray:
    """Return the CRC-32C of every single byte; uint32 [256]."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ np.where(table & np.uint32(1), np.uint32(0x82F63B78), np.uint32(0))
    return table


_CRC_TABLE = _crc_table()


@dataclass
class Recovered:
    """The outcome of `recover`; `kept_as` is None where nothing was wrong with the file, which is as it was."""

    records: int
    damaged: list[tuple[int, int]]
    sha256: str = ""
    kept_as: Path | None = None


def open_content(path: Path) -> bytes | mmap.mmap:
    """Return the bytes of a file without reading them into memory."""
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        # An empty file cannot be mapped.
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if size else b""


def recover(path: Path) -> Recovered:
    """Rewrite a damaged file with its intact records; keep the damaged one beside it under a name not yet taken.

    Raises:
        UsageError: nothing in the file is a record.
        OSError: the file could not be written. It is unchanged then, as after the other error.
    """
    content = open_content(path)
    found = scan(content)
    if not found.damaged and not found.damaged_headers:
        return Recovered(len(found.intact), [], hashlib.sha256(content).hexdigest())
    if not found.intact:
        raise UsageError(
            f"{path} holds no intact record and is left as it is: it is no TFRecord file, or all of it is damaged"
        )
    temporary, checksum = path.with_name(f".{path.name}.tmp"), hashlib.sha256()
    with open_new(temporary) as stream:
        for begin, end in found.intact:
            record = frame(content[begin:end])
            checksum.update(record)
            stream.write(record)
        stream.flush()
        os.fsync(stream.fileno())
    kept_as = _linked(path)
    temporary.replace(path)
    return Recovered(len(found.intact), found.damaged, checksum.hexdigest(), kept_as)


def _linked(path: Path) -> Path:
    """Give a file a second name that nothing has: NAME.damaged, NAME.damaged.2 ...; return that name."""
    for number in itertools.count(1):
        name = path.with_name(path.name + DAMAGED_SUFFIX + (f".{number}" if number > 1 else ""))
        with contextlib.suppress(FileExistsError):
            os.link(path, name)
            return name
    raise AssertionError
