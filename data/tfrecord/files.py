"""Random access to the records of TFRecord files."""

from __future__ import annotations

import mmap
import os
import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from absl.app import UsageError

from data.tfrecord.frames import FOOTER_BYTES, FRAME_BYTES, HEADER_BYTES, masked_crc32c

OPEN_FILES = 128


class RecordFile:
    """The records of one TFRecord file, found by hopping over their lengths once.

    Raises `UsageError` that names the file where a frame is damaged; `data.tfrecord.recovery.scan` then finds the
    intact records.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        with self.path.open("rb") as stream:
            self.size_bytes = os.fstat(stream.fileno()).st_size
            # Slices of a map are copies, as bytes. An empty file cannot be mapped.
            self._content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if self.size_bytes else b""
        self._offsets = self._hop()

    def _hop(self) -> np.ndarray:
        offsets, at, unpack = [0], 0, struct.Struct("<QI").unpack_from
        while at < self.size_bytes:
            if at + HEADER_BYTES > self.size_bytes:
                raise self._damaged(at)
            length, crc = unpack(self._content, at)
            end = at + FRAME_BYTES + length
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
        """Return the serialized examples at `indices`; raises `UsageError` where a checksum does not match."""
        records = []
        begins, ends = self._offsets[indices].tolist(), self._offsets[indices + 1].tolist()
        for begin, end in zip(begins, ends, strict=True):
            data = self._content[begin + HEADER_BYTES : end - FOOTER_BYTES]
            if masked_crc32c(data) != int.from_bytes(self._content[end - FOOTER_BYTES : end], "little"):
                raise self._damaged(begin)
            records.append(data)
        return records


class RecordFiles:
    """The records of many files, numbered through; only the files used last are open.

    Args:
        paths: the files.
        counts: how many records each is said to hold; None where a file itself must tell, which opens it.
        check: is called with every file that is opened; raises `UsageError` where it is not the expected one.
    """

    def __init__(
        self, paths: Sequence[Path], counts: Sequence[int | None], check: Callable[[RecordFile], None]
    ) -> None:
        self.paths = list(paths)
        self._check = check
        self._open: OrderedDict[int, RecordFile] = OrderedDict()
        self.counts = np.asarray(
            [len(self.file(number)) if count is None else count for number, count in enumerate(counts)], np.int64
        )
        self.begins = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.counts)])

    def file(self, number: int) -> RecordFile:
        """Return the file with this number, opened if it is not."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        file = RecordFile(self.paths[number])
        self._check(file)
        self._open[number] = file
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)
        return file

    def numbers(self, examples: np.ndarray) -> np.ndarray:
        """Return the number of the file that each example is in; int64 [N]."""
        return np.searchsorted(self.begins, examples, side="right") - 1

    def read(self, examples: np.ndarray) -> list[bytes]:
        """Return the serialized examples with these numbers, in their order."""
        files = self.numbers(examples)
        records: list[bytes] = [b""] * len(examples)
        for number in np.unique(files):
            at = np.flatnonzero(files == number)
            for i, record in zip(at, self.file(int(number)).read(examples[at] - self.begins[number]), strict=True):
                records[i] = record
        return records
