"""Arrays of N examples -> the bytes of N records, all at once in NumPy.

Every field becomes a block of byte columns [N, W] with a mask of the bytes that are really there; the blocks are laid
side by side and the masked bytes are the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data.tfrecord.frames import FOOTER_BYTES, FRAME_BYTES, HEADER_BYTES, masked_crc32c

# Tags of the messages Example > Features > map entry > Feature > {Float,Int64}List.
LENGTH_DELIMITED_1 = 0x0A
LENGTH_DELIMITED_2 = 0x12
FLOAT_LIST = 0x12
INT64_LIST = 0x1A

Rows = np.ndarray | tuple[np.ndarray, np.ndarray]


@dataclass
class _Block:
    """Byte columns of N records, a mask of the bytes that are written, and their number in each record."""

    content: np.ndarray  # uint8 [N, W]
    keep: np.ndarray  # bool [N, W]
    sizes: np.ndarray | int  # int64 [N], or of every record


def _constant(content: bytes, N: int) -> _Block:
    """Return the same bytes for every record, without copying them."""
    row = np.frombuffer(content, np.uint8)
    W = len(row)
    return _Block(np.broadcast_to(row, (N, W)), np.broadcast_to(np.True_, (N, W)), W)


def _varint(value: int) -> bytes:
    """Return a number in groups of 7 bits, lowest first; the top bit of a byte says that another follows."""
    content = bytearray()
    while value >= 0x80:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*content, value])


def _varints(values: np.ndarray, keep: np.ndarray | None = None) -> _Block:
    """Encode integers in [0, 2**31), [N, K], as varints; each gets as many columns as the largest number needs.

    Example:
        values   [[1, 300]]                  the largest needs 2 bytes, so every number gets 2 columns
        content  [[01, 00,  AC, 02]]         300 = 2 * 128 + 44, and 44 + 128 = AC
        keep     [[ 1,  0,   1,  1]]         1 is one byte long: its second column is not written
        sizes    [3]

    Args:
        values: integers.
        keep: bool [N, K], the values that are written; None means all.

    Raises:
        ValueError: for integers outside the range.
    """
    N, K = values.shape
    largest = int(values.max(initial=0))
    if int(values.min(initial=0)) < 0 or largest >= 2**31:
        raise ValueError("varints are written of integers in [0, 2**31)")
    width = max(1, (largest.bit_length() + 6) // 7)
    if width == 1:
        present = np.broadcast_to(np.True_, (N, K)) if keep is None else keep
        return _Block(values.astype(np.uint8), present, K if keep is None else keep.sum(axis=1))
    unsigned = values.astype(np.uint32)
    content = np.empty((N, K, width), np.uint8)
    present = np.empty((N, K, width), bool)
    present[:, :, 0] = True if keep is None else keep
    for i in range(1, width):
        longer = unsigned >= np.uint32(1 << (7 * i))
        content[:, :, i - 1] = ((unsigned >> np.uint32(7 * i - 7)).astype(np.uint8) & 0x7F) | (longer << np.uint8(7))
        present[:, :, i] = longer if keep is None else longer & keep
    content[:, :, -1] = unsigned >> np.uint32(7 * width - 7)
    present = present.reshape(N, K * width)
    return _Block(content.reshape(N, K * width), present, np.count_nonzero(present, axis=1))


def _prefixed(tag: bytes, blocks: Sequence[_Block], N: int) -> list[_Block]:
    """Return the blocks with their tag and their common length in bytes before them."""
    sizes = sum(block.sizes for block in blocks)
    if isinstance(sizes, int):
        return [_constant(tag + _varint(sizes), N), *blocks]
    return [_constant(tag, N), _varints(sizes[:, None]), *blocks]


def _feature_blocks(name: str, rows: Rows) -> list[_Block]:
    """Return the map entry of one feature, from the inside out: values, list, feature, key.

    Example:
        name "a", rows [[1, 300]]
        values   01 AC 02
        list     1A 05 | 0A 03 | 01 AC 02                 Int64List of 5 bytes: field 1 of 3 bytes
        entry    0A 0C | 0A 01 61 | 12 07 | 1A 05 ...     12 bytes: the key, the feature
    """
    values, lengths = rows if isinstance(rows, tuple) else (rows, None)
    if values.ndim == 1:
        values = values[:, None]
    N, K = values.shape
    keep = None if lengths is None else np.arange(K) < lengths[:, None]
    if values.dtype.kind == "f":
        content = np.ascontiguousarray(values, "<f4").view(np.uint8).reshape(N, 4 * K)
        present = np.broadcast_to(np.True_, (N, 4 * K)) if keep is None else np.repeat(keep, 4, axis=1)
        payload = _Block(content, present, 4 * K if lengths is None else 4 * lengths)
        tag = FLOAT_LIST
    else:
        payload, tag = _varints(values, keep), INT64_LIST
    key = name.encode()
    blocks = [payload]
    for number in (LENGTH_DELIMITED_1, tag, LENGTH_DELIMITED_2):
        blocks = _prefixed(bytes([number]), blocks, N)
    entry = [_constant(bytes([LENGTH_DELIMITED_1, len(key)]) + key, N), *blocks]
    return _prefixed(bytes([LENGTH_DELIMITED_1]), entry, N)


def encode_examples(features: Mapping[str, Rows]) -> tuple[np.ndarray, np.ndarray]:
    """Encode N examples as TFRecord bytes, with frames and checksums.

    Example:
        features  {"a": [[1, 300], [1, 2]]}
        row 0     0A 0E | 0A 0C 0A 01 61 12 07 1A 05 0A 03 01 AC 02       16 bytes
        row 1     0A 0D | 0A 0B 0A 01 61 12 06 1A 04 0A 02 01 02          15 bytes: 2 is a byte shorter than 300
        offsets   [0, 32, 63]                                             a frame adds 16 bytes to each

    Args:
        features: by name an integer or float array [N] or [N, K], or such an array with the number of values [N] that
            count in each row. Integers are in [0, 2**31).

    Returns:
        The bytes of all records, one after the other, uint8; and the offsets of the records in them, int64 [N + 1].
    """
    first = next(iter(features.values()))
    N = len(first[0] if isinstance(first, tuple) else first)
    blocks = [block for name in features for block in _feature_blocks(name, features[name])]
    blocks = _prefixed(bytes([LENGTH_DELIMITED_1]), blocks, N)
    blocks = [_constant(bytes(HEADER_BYTES), N), *blocks, _constant(bytes(FOOTER_BYTES), N)]
    content_NW = np.concatenate([block.content for block in blocks], axis=1)
    keep_NW = np.concatenate([block.keep for block in blocks], axis=1)
    content = content_NW[keep_NW]
    offsets = np.concatenate([[0], np.cumsum(np.broadcast_to(sum(block.sizes for block in blocks), N))])

    begins, ends = offsets[:-1], offsets[1:]
    lengths = np.ascontiguousarray(ends - begins - FRAME_BYTES, "<u8").view(np.uint8).reshape(N, 8)
    content[begins[:, None] + np.arange(8)] = lengths
    header_crc, data_crc = np.empty(N, "<u4"), np.empty(N, "<u4")
    for i, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
        header_crc[i] = masked_crc32c(content[begin : begin + 8])
        data_crc[i] = masked_crc32c(content[begin + HEADER_BYTES : end - FOOTER_BYTES])
    content[begins[:, None] + np.arange(8, 12)] = header_crc.view(np.uint8).reshape(N, 4)
    content[ends[:, None] + np.arange(-4, 0)] = data_crc.view(np.uint8).reshape(N, 4)
    return content, offsets
