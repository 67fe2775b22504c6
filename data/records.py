"""TFRecord files of tf.train.Example without TensorFlow: framing, CRC-32C, and a codec for whole batches in NumPy.

Reads what BERT's, Google's and albert_zh's scripts write (lists packed or not, features in any order) and writes the
standard schema in canonical encoding. The format: per record uint64 length, masked CRC of the length, the protobuf,
masked CRC of the protobuf; integers little-endian (tensorflow/core/lib/io/record_writer.h).
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c
import numpy as np
from absl.app import UsageError

_HEADER_BYTES = 12
_FOOTER_BYTES = 4
_FRAME_BYTES = _HEADER_BYTES + _FOOTER_BYTES
# Tags of the messages Example > Features > map entry > Feature > {Float,Int64}List.
_LENGTH_DELIMITED_1 = 0x0A
_FLOAT_LIST = 0x12
_INT64_LIST = 0x1A
_VARINT_1 = 0x08
_FIXED32_1 = 0x0D

_SEARCH_BYTES = 1 << 16

Rows = np.ndarray | tuple[np.ndarray, np.ndarray]


class MalformedRecordError(ValueError):
    """A record whose bytes are as they were written but are not what is expected of an example."""


# -- encoding ----------------------------------------------------------------------------------------------------------


@dataclass
class _Block:
    """Columns of bytes of N records, which of them are really there, and how many of those each record has."""

    content: np.ndarray  # uint8 [N, W]
    keep: np.ndarray  # bool [N, W]
    sizes: np.ndarray | int  # int64 [N], or of every record


def _constant(content: bytes, N: int) -> _Block:
    row = np.frombuffer(content, np.uint8)
    W = len(row)
    return _Block(np.broadcast_to(row, (N, W)), np.broadcast_to(np.True_, (N, W)), W)


def _varint(value: int) -> bytes:
    content = bytearray()
    while value >= 0x80:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*content, value])


def _varints(values: np.ndarray, keep: np.ndarray | None = None) -> _Block:
    """Encodes integers in [0, 2**31) as varints, [N, K], each in as many columns as the largest needs."""
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
    """The blocks behind a tag and their length."""
    sizes = sum(block.sizes for block in blocks)
    if isinstance(sizes, int):
        return [_constant(tag + _varint(sizes), N), *blocks]
    return [_constant(tag, N), _varints(sizes[:, None]), *blocks]


def _feature_blocks(name: str, rows: Rows) -> list[_Block]:
    values, lengths = rows if isinstance(rows, tuple) else (rows, None)
    N, K = values.shape
    keep = None if lengths is None else np.arange(K) < lengths[:, None]
    if values.dtype.kind == "f":
        content = np.ascontiguousarray(values, "<f4").view(np.uint8).reshape(N, 4 * K)
        present = np.broadcast_to(np.True_, (N, 4 * K)) if keep is None else np.repeat(keep, 4, axis=1)
        payload = _Block(content, present, 4 * K if lengths is None else 4 * lengths)
        tag = _FLOAT_LIST
    else:
        payload, tag = _varints(values, keep), _INT64_LIST
    key = name.encode()
    blocks = [payload]
    for number in (_LENGTH_DELIMITED_1, tag, 0x12):
        blocks = _prefixed(bytes([number]), blocks, N)
    entry = [_constant(bytes([_LENGTH_DELIMITED_1, len(key)]) + key, N), *blocks]
    return _prefixed(bytes([_LENGTH_DELIMITED_1]), entry, N)


def masked_crc32c(content: bytes | np.ndarray) -> int:
    """The checksum as TFRecord files store it: CRC-32C rotated by 15 bits plus a constant."""
    crc = google_crc32c.value(content)  # pyright: ignore[reportArgumentType]  (takes any contiguous buffer)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def frame(record: bytes) -> bytes:
    """Returns a serialized example as a record of a TFRecord file."""
    length = struct.pack("<Q", len(record))
    return b"".join(
        [length, struct.pack("<I", masked_crc32c(length)), record, struct.pack("<I", masked_crc32c(record))]
    )


def encode_examples(features: Mapping[str, Rows]) -> tuple[np.ndarray, np.ndarray]:
    """Encodes N examples as TFRecord bytes, frames and checksums included.

    Args:
        features: by name an integer or float array [N, K], or such an array with the number of values [N] that
            count in each row. Integers are in [0, 2**31).

    Returns:
        uint8 bytes of all records, one after the other, and int64 [N + 1] offsets of the records in them.
    """
    first = next(iter(features.values()))
    N = len(first[0] if isinstance(first, tuple) else first)
    blocks = [block for name in features for block in _feature_blocks(name, features[name])]
    blocks = _prefixed(bytes([_LENGTH_DELIMITED_1]), blocks, N)
    blocks = [_constant(bytes(_HEADER_BYTES), N), *blocks, _constant(bytes(_FOOTER_BYTES), N)]
    content_NW = np.concatenate([block.content for block in blocks], axis=1)
    keep_NW = np.concatenate([block.keep for block in blocks], axis=1)
    content = content_NW[keep_NW]
    offsets = np.concatenate([[0], np.cumsum(np.broadcast_to(sum(block.sizes for block in blocks), N))])

    begins, ends = offsets[:-1], offsets[1:]
    lengths = np.ascontiguousarray(ends - begins - _FRAME_BYTES, "<u8").view(np.uint8).reshape(N, 8)
    content[begins[:, None] + np.arange(8)] = lengths
    header_crc, data_crc = np.empty(N, "<u4"), np.empty(N, "<u4")
    for i, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
        header_crc[i] = masked_crc32c(content[begin : begin + 8])
        data_crc[i] = masked_crc32c(content[begin + _HEADER_BYTES : end - _FOOTER_BYTES])
    content[begins[:, None] + np.arange(8, 12)] = header_crc.view(np.uint8).reshape(N, 4)
    content[ends[:, None] + np.arange(-4, 0)] = data_crc.view(np.uint8).reshape(N, 4)
    return content, offsets


# -- decoding ----------------------------------------------------------------------------------------------------------


@dataclass
class _Cursor:
    """Reads tags and varints of all records of a batch in step; `bad` collects the rows that cannot be read."""

    content: np.ndarray  # uint8, padded so that reading a little past the end is harmless
    bad: np.ndarray

    def tag(self, at: np.ndarray, expected: int) -> np.ndarray:
        self.bad |= self.content[at] != expected
        return at + 1

    def varint(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns values below 2**35 and the positions behind them."""
        value = np.zeros(len(at), np.int64)
        more = np.ones(len(at), bool)
        for i in range(5):
            byte = self.content[at].astype(np.int64)
            value |= np.where(more, (byte & 0x7F) << (7 * i), 0)
            at = at + more
            more &= byte >= 0x80
            if not more.any():
                break
        self.bad |= more
        return value, at

    def message(self, at: np.ndarray, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads a length; returns begin and end of what it announces, inside `limit`."""
        size, begin = self.varint(at)
        end = begin + size
        self.bad |= end > limit
        return np.minimum(begin, limit), np.minimum(end, limit)


@dataclass
class _Lists:
    """Where the values of one feature are, by row."""

    kind: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    present: np.ndarray


def _locate(records: Sequence[bytes]) -> tuple[np.ndarray, dict[str, _Lists], np.ndarray]:
    joined = b"".join(records)
    content = np.frombuffer(joined + bytes(64), np.uint8)
    ends = np.cumsum([len(record) for record in records]).astype(np.int64)
    begins = np.concatenate([[0], ends[:-1]])
    N = len(records)
    cursor = _Cursor(content, np.zeros(N, bool))
    at, limit = cursor.message(cursor.tag(begins, _LENGTH_DELIMITED_1), ends)
    cursor.bad |= limit != ends
    features: dict[str, _Lists] = {}
    rows = np.flatnonzero(~cursor.bad & (at < limit))
    while len(rows):
        step = _Cursor(content, np.zeros(len(rows), bool))
        entry, entry_end = step.message(step.tag(at[rows], _LENGTH_DELIMITED_1), limit[rows])
        key, key_end = step.message(step.tag(entry, _LENGTH_DELIMITED_1), entry_end)
        value, value_end = step.message(step.tag(key_end, 0x12), entry_end)
        step.bad |= value_end != entry_end
        filled = value < value_end
        kind = np.where(filled, content[value], 0)
        inner = _Cursor(content, np.zeros(len(rows), bool))
        values, values_end = inner.message(value + filled, value_end)
        values, values_end = np.where(filled, values, value), np.where(filled, values_end, value)
        step.bad |= filled & (inner.bad | (values_end != value_end))
        at[rows] = entry_end
        _assign(features, content, rows, (key, key_end), (kind, values, values_end), step.bad, N)
        cursor.bad[rows] |= step.bad
        rows = np.flatnonzero(~cursor.bad & (at < limit))
    return content, features, cursor.bad


def _assign(
    features: dict[str, _Lists],
    content: np.ndarray,
    rows: np.ndarray,
    key: tuple[np.ndarray, np.ndarray],
    found: tuple[np.ndarray, np.ndarray, np.ndarray],
    bad: np.ndarray,
    N: int,
) -> None:
    """Files what one step of all rows found under the names of the keys, which are nearly always all the same."""
    open_rows = ~bad
    while open_rows.any():
        first = int(np.flatnonzero(open_rows)[0])
        name_bytes = content[key[0][first] : key[1][first]]
        same = open_rows & (key[1] - key[0] == len(name_bytes))
        if len(name_bytes):
            span = np.minimum(key[0][:, None] + np.arange(len(name_bytes)), len(content) - 1)
            same &= (content[span] == name_bytes).all(axis=1)
        name = name_bytes.tobytes().decode("utf-8", errors="replace")
        lists = features.get(name)
        if lists is None:
            zeros = np.zeros(N, np.int64)
            lists = features[name] = _Lists(np.zeros(N, np.uint8), zeros, zeros.copy(), np.zeros(N, bool))
        chosen = rows[same]
        lists.kind[chosen], lists.begin[chosen], lists.end[chosen] = (part[same] for part in found)
        lists.present[chosen] = True
        open_rows &= ~same


@dataclass
class Column:
    """Values of one feature of N records, one record after the other."""

    values: np.ndarray  # int64 or float32 [total]
    splits: np.ndarray  # int64 [N + 1]

    def matrix(self, width: int) -> np.ndarray:
        """The values as [N, width]; raises `MalformedRecordError` when a record has another number of them."""
        lengths = np.diff(self.splits)
        wrong = np.flatnonzero(lengths != width)
        if len(wrong):
            raise MalformedRecordError(f"{lengths[wrong[0]]} values where {width} are expected")
        return self.values.reshape(-1, width)

    def padded(self, width: int) -> np.ndarray:
        """The values as [N, width], zero padded; raises `MalformedRecordError` when a record has more."""
        lengths = np.diff(self.splits)
        if lengths.max(initial=0) > width:
            raise MalformedRecordError(f"{lengths.max()} values where at most {width} are expected")
        matrix = np.zeros((len(lengths), width), self.values.dtype)
        matrix[np.arange(width) < lengths[:, None]] = self.values
        return matrix


def _packed_spans(content: np.ndarray, lists: _Lists, packed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    cursor = _Cursor(content, np.zeros(len(packed), bool))
    begin, end = cursor.message(lists.begin + 1, lists.end)
    bad = packed & (cursor.bad | (end != lists.end))
    return np.where(packed, begin, lists.begin), lists.end, bad


def _decode_varints(content: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decodes concatenated runs of varints; returns int64 values, splits by run, and which runs end inside one."""
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    last = content < 0x80
    bad = np.zeros(len(sizes), bool)
    filled = sizes > 0
    bad[filled] = ~last[bounds[1:][filled] - 1]
    if last.all():
        return content.astype(np.int64), bounds, bad
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    width = ends - starts + 1
    values = (content[starts] & 0x7F).astype(np.int64)
    for i in range(1, min(int(width.max(initial=1)), 10)):
        longer = np.flatnonzero(width > i)
        values[longer] |= (content[starts[longer] + i] & 0x7F).astype(np.int64) << (7 * i)
    return values, np.searchsorted(ends, bounds), bad


def _decode_list(content: np.ndarray, lists: _Lists) -> tuple[Column, np.ndarray]:
    kinds = np.unique(lists.kind[lists.present & (lists.end > lists.begin)])
    if len(kinds) > 1 or (len(kinds) and kinds[0] not in (_FLOAT_LIST, _INT64_LIST)):
        return Column(np.zeros(0, np.int64), np.zeros(len(lists.kind) + 1, np.int64)), np.ones(len(lists.kind), bool)
    is_float = bool(len(kinds)) and kinds[0] == _FLOAT_LIST
    filled = lists.end > lists.begin
    packed = filled & (content[lists.begin] == _LENGTH_DELIMITED_1)
    begin, end, bad = _packed_spans(content, lists, packed)
    end = np.where(bad, begin, end)
    view = content.data
    payload = np.frombuffer(b"".join(view[a:b] for a, b in zip(begin.tolist(), end.tolist(), strict=True)), np.uint8)
    sizes = end - begin
    if is_float:
        stride = np.where(packed, 4, 5)
        bad |= sizes % stride != 0
        if bad.any():
            return Column(np.zeros(0, np.float32), np.zeros(len(sizes) + 1, np.int64)), bad
        unpacked = np.repeat(filled & ~packed, sizes)
        if unpacked.any():
            # In an unpacked list every value carries its tag.
            within = np.arange(len(payload)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            payload = payload[~(unpacked & (within % 5 == 0))]
        splits = np.concatenate([[0], np.cumsum(sizes // stride)])
        return Column(payload.view("<f4").astype(np.float32), splits), bad
    values, splits, cut = _decode_varints(payload, sizes)
    bad |= cut
    loose = filled & ~packed
    if loose.any():
        counts = np.diff(splits)
        unpacked = np.repeat(loose, counts)
        odd = (np.arange(len(values)) - np.repeat(splits[:-1], counts)) % 2 == 0
        bad[np.repeat(np.arange(len(counts)), counts)[unpacked & odd & (values != _VARINT_1)]] = True
        bad |= loose & (counts % 2 != 0)
        values = values[~(unpacked & odd)]
        splits = np.concatenate([[0], np.cumsum(np.where(loose, counts // 2, counts))])
    return Column(values, splits), bad


def decode_examples(
    records: Sequence[bytes], names: Sequence[str] | None = None
) -> tuple[dict[str, Column], np.ndarray]:
    """Decodes serialized tf.train.Examples (without their frames) of integer and float features.

    Args:
        records: N serialized examples.
        names: the features wanted; None decodes all. A feature that no record has is left out.

    Returns:
        The features by name, and bool [N]: records that are not such examples, or lack a feature that others have.
        Where any record is bad the columns must not be used.
    """
    content, features, bad = _locate(records)
    columns = {}
    for name in features if names is None else [name for name in names if name in features]:
        columns[name], wrong = _decode_list(content, features[name])
        bad = bad | wrong | ~features[name].present
    return columns, bad


# -- files -------------------------------------------------------------------------------------------------------------


class RecordFile:
    """Random access to the records of one TFRecord file, found by hopping over their lengths once.

    Raises `UsageError` naming the file when its frame is damaged; `data.records.scan` finds what is still intact then.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        with self.path.open("rb") as stream:
            self.size_bytes = os.fstat(stream.fileno()).st_size
            # Slices of a map are copies, as bytes; an empty file cannot be mapped.
            self._content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if self.size_bytes else b""
        self._offsets = self._hop()

    def _hop(self) -> np.ndarray:
        offsets, at, unpack = [0], 0, struct.Struct("<QI").unpack_from
        while at < self.size_bytes:
            if at + _HEADER_BYTES > self.size_bytes:
                raise self._damaged(at)
            length, crc = unpack(self._content, at)
            end = at + _FRAME_BYTES + length
            if masked_crc32c(self._content[at : at + 8]) != crc or end > self.size_bytes:
                raise self._damaged(at)
            at = end
            offsets.append(at)
        return np.asarray(offsets, np.int64)

    def _damaged(self, at: int) -> UsageError:
        return UsageError(
            f"{self.path}: damaged at byte {at:,} of {self.size_bytes:,}; "
            f"recover what is intact with: python3 inspect_records.py repair {self.path}"
        )

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def read(self, indices: np.ndarray) -> list[bytes]:
        """Returns the serialized examples at `indices`; raises `UsageError` where a checksum does not match."""
        records = []
        begins, ends = self._offsets[indices].tolist(), self._offsets[indices + 1].tolist()
        for begin, end in zip(begins, ends, strict=True):
            data = self._content[begin + _HEADER_BYTES : end - _FOOTER_BYTES]
            if masked_crc32c(data) != int.from_bytes(self._content[end - _FOOTER_BYTES : end], "little"):
                raise self._damaged(begin)
            records.append(data)
        return records


@dataclass
class Scan:
    """What is intact in a TFRecord file, and what is not.

    Attributes:
        intact: byte ranges of the serialized examples whose checksum holds.
        damaged: byte ranges, frames included, that hold no record whose checksum holds.
        damaged_headers: intact records whose length or its checksum is damaged.
    """

    intact: list[tuple[int, int]] = field(default_factory=list)
    damaged: list[tuple[int, int]] = field(default_factory=list)
    damaged_headers: int = 0


def scan(content: bytes | mmap.mmap) -> Scan:
    """Finds every intact record of a TFRecord file, whatever else is damaged.

    Where a length cannot be trusted the next header is searched for byte by byte, so that a damaged byte costs the
    record it is in at most, and none if it is in a header.
    """
    found, at, size = Scan(), 0, len(content)
    while at < size:
        length, header_intact = _header(content, at)
        end = at + _FRAME_BYTES + length
        intact = _data_intact(content, at, end)
        if not intact and not (header_intact and (end == size or _header(content, end)[1])):
            # Either the length is wrong or bytes are missing or too many: the next header tells where this record ends.
            end = _next_header(content, at + 1)
            intact = _data_intact(content, at, end)
        if intact:
            found.damaged_headers += not header_intact
            found.intact.append((at + _HEADER_BYTES, end - _FOOTER_BYTES))
        else:
            found.damaged.append((at, end))
        at = end
    return found


def _header(content: bytes | mmap.mmap, at: int) -> tuple[int, bool]:
    header = content[at : at + _HEADER_BYTES]
    if len(header) < _HEADER_BYTES:
        return 0, False
    length, crc = struct.unpack("<QI", header)
    return length, masked_crc32c(header[:8]) == crc


def _data_intact(content: bytes | mmap.mmap, begin: int, end: int) -> bool:
    if end > len(content) or end - begin < _FRAME_BYTES:
        return False
    crc = int.from_bytes(content[end - _FOOTER_BYTES : end], "little")
    return masked_crc32c(content[begin + _HEADER_BYTES : end - _FOOTER_BYTES]) == crc


def _next_header(content: bytes | mmap.mmap, begin: int) -> int:
    """The first position from `begin` on where a record with an intact header begins and ends inside; else the end."""
    for window in range(begin, len(content), _SEARCH_BYTES):
        raw = np.frombuffer(content[window : window + _SEARCH_BYTES + _HEADER_BYTES - 1], np.uint8)
        count = len(raw) - _HEADER_BYTES + 1
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
            if at + _FRAME_BYTES + _header(content, at)[0] <= len(content):
                return at
    return len(content)


def _crc_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ np.where(table & np.uint32(1), np.uint32(0x82F63B78), np.uint32(0))
    return table


_CRC_TABLE = _crc_table()
