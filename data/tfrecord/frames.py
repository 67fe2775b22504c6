"""The frame of a record in a TFRecord file (tensorflow/core/lib/io/record_writer.h).

Per record: uint64 length, masked CRC of the length, the serialized example, masked CRC of the example; integers are
little-endian.
"""

from __future__ import annotations

import struct

import google_crc32c
import numpy as np

HEADER_BYTES = 12
FOOTER_BYTES = 4
FRAME_BYTES = HEADER_BYTES + FOOTER_BYTES


class MalformedRecordError(ValueError):
    """A record with intact checksums whose content is not the expected example."""


def masked_crc32c(content: bytes | np.ndarray) -> int:
    """Return the checksum as TFRecord files store it: CRC-32C rotated by 15 bits, plus a constant."""
    crc = google_crc32c.value(content)  # pyright: ignore[reportArgumentType]  (takes any contiguous buffer)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def frame(record: bytes) -> bytes:
    """Return a serialized example with its frame."""
    length = struct.pack("<Q", len(record))
    return b"".join(
        [length, struct.pack("<I", masked_crc32c(length)), record, struct.pack("<I", masked_crc32c(record))]
    )
