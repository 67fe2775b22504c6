"""The bytes of N records -> arrays, all at once in NumPy.

The cursors of all records move in step: one pass of the loop reads the next map entry of every record, which is nearly
always the same feature in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.tfrecord.encoding import FLOAT_LIST, INT64_LIST, LENGTH_DELIMITED_1, LENGTH_DELIMITED_2
from data.tfrecord.frames import MalformedRecordError

_VARINT_1 = 0x08
# Reading a little past the end of the last record finds zeros instead of raising.
_PADDING_BYTES = 64


@dataclass
class _Cursor:
    """Reads tags and varints of all records in step; `bad` collects the rows that cannot be read."""

    content: np.ndarray  # uint8, padded
    bad: np.ndarray

    def tag(self, at: np.ndarray, expected: int) -> np.ndarray:
        """Return the positions behind a tag; rows with another one are bad."""
        self.bad |= self.content[at] != expected
        return at + 1

    def varint(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return values below 2**35 and the positions behind them."""
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
        """Read a length; return begin and end of the message that it announces, inside `limit`."""
        size, begin = self.varint(at)
        end = begin + size
        self.bad |= end > limit
        return np.minimum(begin, limit), np.minimum(end, limit)


@dataclass
class _Lists:
    """Where the list of one feature is in each row: its tag, and the bytes [begin, end) of its content."""

    kind: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    present: np.ndarray


def _locate(records: Sequence[bytes]) -> tuple[np.ndarray, dict[str, _Lists], np.ndarray]:
    """Find the lists of all features in all records; return the joined bytes, the lists by name, the bad rows.

    Example:
        records   [0A 0E 0A 0C 0A 01 61 12 07 1A 05 0A 03 01 AC 02, ...]   one entry, "a", in each
        pass 1    key 61, kind 1A, begin and end of 0A 03 01 AC 02 in every row
        result    {"a": kind [1A, ..], begin [11, ..], end [16, ..], present [1, ..]}
    """
    joined = b"".join(records)
    content = np.frombuffer(joined + bytes(_PADDING_BYTES), np.uint8)
    ends = np.cumsum([len(record) for record in records]).astype(np.int64)
    begins = np.concatenate([[0], ends[:-1]])
    N = len(records)
    cursor = _Cursor(content, np.zeros(N, bool))
    at, limit = cursor.message(cursor.tag(begins, LENGTH_DELIMITED_1), ends)
    cursor.bad |= limit != ends
    features: dict[str, _Lists] = {}
    rows = np.flatnonzero(~cursor.bad & (at < limit))
    while len(rows):
        step = _Cursor(content, np.zeros(len(rows), bool))
        entry, entry_end = step.message(step.tag(at[rows], LENGTH_DELIMITED_1), limit[rows])
        key, key_end = step.message(step.tag(entry, LENGTH_DELIMITED_1), entry_end)
        value, value_end = step.message(step.tag(key_end, LENGTH_DELIMITED_2), entry_end)
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
    """Enter the lists that one pass found under the names of their keys; rows are grouped by equal keys."""
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
        """Return the values as [N, width]; raises `MalformedRecordError` where a record has another number of them."""
        lengths = np.diff(self.splits)
        wrong = np.flatnonzero(lengths != width)
        if len(wrong):
            raise MalformedRecordError(f"{lengths[wrong[0]]} values where {width} are expected")
        return self.values.reshape(len(lengths), width)

    def array(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Return the values as [N, *shape]; raises `MalformedRecordError` where a record has another number of them."""
        width = int(np.prod(shape, dtype=np.int64))
        return self.matrix(width).reshape(-1, *shape).astype(dtype, copy=False)

    def padded(self, width: int) -> np.ndarray:
        """Return the values as [N, width], zero padded; raises `MalformedRecordError` where a record has more."""
        lengths = np.diff(self.splits)
        if lengths.max(initial=0) > width:
            raise MalformedRecordError(f"{lengths.max()} values where at most {width} are expected")
        matrix = np.zeros((len(lengths), width), self.values.dtype)
        matrix[np.arange(width) < lengths[:, None]] = self.values
        return matrix


def _packed_spans(content: np.ndarray, lists: _Lists, packed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return begin and end of the values themselves, behind tag and length where a list is packed; and the bad rows."""
    cursor = _Cursor(content, np.zeros(len(packed), bool))
    begin, end = cursor.message(lists.begin + 1, lists.end)
    bad = packed & (cursor.bad | (end != lists.end))
    return np.where(packed, begin, lists.begin), lists.end, bad


def _decode_varints(content: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decode runs of varints; return the values, int64, where each run begins, and which runs end inside a varint.

    Example:
        content  01 AC 02 | 05       sizes [3, 1]
        last      1  0  1    1       the top bit is clear in the last byte of a varint
        ends     [0, 2, 3]           starts [0, 1, 3]
        values   [1, 300, 5]         splits [0, 2, 3]
    """
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
    """Decode one feature of all records; return its column and the bad rows.

    Example:
        packed     0A 03 01 AC 02             one tag, one length, the values
        unpacked   08 01 08 AC 02             a tag before every value, as old writers do it; every odd varint counts
        values     [1, 300] from either       splits [0, 2, 4]
    """
    kinds = np.unique(lists.kind[lists.present & (lists.end > lists.begin)])
    if len(kinds) > 1 or (len(kinds) and kinds[0] not in (FLOAT_LIST, INT64_LIST)):
        return Column(np.zeros(0, np.int64), np.zeros(len(lists.kind) + 1, np.int64)), np.ones(len(lists.kind), bool)
    is_float = bool(len(kinds)) and kinds[0] == FLOAT_LIST
    filled = lists.end > lists.begin
    packed = filled & (content[lists.begin] == LENGTH_DELIMITED_1)
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
    """Decode serialized tf.train.Examples (without their frames) of integer and float features.

    Args:
        records: N serialized examples.
        names: the features to decode; None means all. A feature that no record has is left out.

    Returns:
        The features by name, and bool [N]: records that are not such examples, or lack a feature that others have.
        The columns are meaningless where any record is bad.
    """
    content, features, bad = _locate(records)
    columns = {}
    for name in features if names is None else [name for name in names if name in features]:
        columns[name], wrong = _decode_list(content, features[name])
        bad = bad | wrong | ~features[name].present
    return columns, bad
