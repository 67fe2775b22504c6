"""Sentences that a model wrote beside texts (ERNIE-M's BTMLM), kept on disk by the content of each text.

    DIVAN_CACHE/pseudo/KEY    digest of KEY and the rest | N, int64 | keys uint64 [N] | ends int64 [N] | ids int32 [..]

KEY stands for all that decides what is written: weights, shape, code, precision, length rule. A text is found by a
digest of its tokens and of the language that is asked for, so that records which gain, lose or reorder texts keep the
sentences of the others. What lies there and does not have its digest is not believed; the least recently used files go
first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from absl.app import UsageError

from data.forms.sides import original_ids
from data.spoken import OTHER_LANGUAGE
from ground import cache
from ground.files import write_atomically

if TYPE_CHECKING:
    from data.forms.sides import Side

FOLDER = "pseudo"
PSEUDO = "pseudo_ids"
"""The feature of a batch that holds what was written beside its texts, int32 [B, K]; 0 behind the end."""
MOST_BYTES = 16 << 30
MOST_BYTES_OF_ONE = 4 << 30
MOST_FILES = 20
_DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Sentences:
    """What was written beside texts.

    Attributes:
        keys: of the texts (`keys_of`), ascending, uint64 [N].
        ends: where the sentence of each ends in `ids`, int64 [N].
        ids: of all sentences, one behind the other, int32.
    """

    keys: np.ndarray
    ends: np.ndarray
    ids: np.ndarray

    @classmethod
    def of(cls, found: Mapping[int, np.ndarray]) -> Sentences:
        """Return the sentences of a dictionary by key."""
        keys = np.sort(np.fromiter(found, np.uint64, len(found)))
        ids = [found[key] for key in keys.tolist()]
        ends = np.cumsum([len(each) for each in ids], dtype=np.int64)
        return cls(keys, ends, np.concatenate([np.zeros(0, np.int32), *ids]))

    def rows(self, keys_B: np.ndarray, width: int) -> np.ndarray:
        """Return the sentences of keys that are all known, int32 [B, width], 0 behind their ends.

        Example:
            keys [3 8], ends [2 3], ids [7 7 9]; asked 8, 3 at width 3 -> [[9 0 0] [7 7 0]]
        """
        places_B = np.searchsorted(self.keys, keys_B)
        ends_B = self.ends[places_B]
        begins_B = np.where(places_B > 0, self.ends[places_B - 1], 0)
        at_BK = begins_B[:, None] + np.arange(width)
        inside_BK = at_BK < ends_B[:, None]
        if not len(self.ids):
            return np.zeros((len(keys_B), width), np.int32)
        return np.where(inside_BK, self.ids[np.where(inside_BK, at_BK, 0)], 0).astype(np.int32)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.keys)


class Batches(Protocol):
    """A data set."""

    @property
    def num_examples(self) -> int: ...
    def batch(self, step: int) -> Mapping[str, Any]: ...


class BesideWritten:
    """A data set whose batches bring what was written beside their texts."""

    def __init__(self, dataset: Batches, side: Side, sentences: Sentences, width: int):
        self._dataset, self._side, self._sentences, self._width = dataset, side, sentences, width

    @property
    def num_examples(self) -> int:
        """Examples of one epoch."""
        return self._dataset.num_examples

    def batch(self, step: int) -> Mapping[str, Any]:
        """Return the batch of optimizer step `step` (from 0)."""
        batch = self._dataset.batch(step)
        return {**batch, PSEUDO: self._sentences.rows(keys_of(batch, self._side), self._width)}


def keys_of(batch: Mapping[str, np.ndarray], side: Side) -> np.ndarray:
    """Return a digest of each text as it was before masking, and of the language that is asked for, uint64 [B]."""
    ids_BL = np.ascontiguousarray(original_ids(batch, side), "<i4")
    lengths_B = batch[side.mask].sum(axis=1)
    asked_B = batch.get(OTHER_LANGUAGE, np.full(len(ids_BL), -1, np.int32)).astype("<i4")
    digests = b"".join(
        hashlib.blake2b(ids[:length].tobytes() + asked.tobytes(), digest_size=8).digest()
        for ids, length, asked in zip(ids_BL, lengths_B.tolist(), asked_B, strict=True)
    )
    return np.frombuffer(digests, "<u8")


def write_all(
    batches: Iterable[Mapping[str, np.ndarray]],
    side: Side,
    former: Sentences,
    write: Callable[[Iterable[Mapping[str, np.ndarray]]], Iterator[tuple[np.ndarray, np.ndarray]]],
) -> tuple[Sentences, int]:
    """Return the sentences of all texts of the batches, and how many had to be written.

    Args:
        batches: of which rows without a token only fill up.
        side: the text.
        former: what is known already.
        write: batches -> for each what is written beside its texts, int32 [B, K], and how many tokens of it, int32 [B];
            it is given the batches in which a text is new.
    """
    found = dict(zip(former.keys.tolist(), np.split(former.ids, former.ends[:-1]), strict=False)) if len(former) else {}
    asked: list[tuple[np.ndarray, np.ndarray]] = []

    def unknown() -> Iterable[Mapping[str, np.ndarray]]:
        for batch in batches:
            keys_B, lengths_B = keys_of(batch, side), batch[side.mask].sum(axis=1)
            fresh_B = np.array([key not in found for key in keys_B.tolist()]) & (lengths_B > 0)
            if fresh_B.any():
                asked.append((keys_B, fresh_B))
                yield batch

    count = 0
    for ids_BK, lengths_B in write(unknown()):
        keys_B, fresh_B = asked.pop(0)
        for row in np.flatnonzero(fresh_B).tolist():
            count += int(keys_B[row]) not in found
            found[int(keys_B[row])] = np.asarray(ids_BK[row, : lengths_B[row]], np.int32)
    return (Sentences.of(found), count) if count else (former, 0)


NOTHING = Sentences(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int32))


def read(key: str) -> Sentences:
    """Return all that is known under a key; nothing where there is no file, or not the one that was written."""
    path = _path(key)
    if path is None:
        return NOTHING
    try:
        status = path.lstat()  # a pipe would be waited for
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES_OF_ONE:
            return NOTHING
        content = path.read_bytes()
    except OSError:
        return NOTHING
    rest = content[_DIGEST_BYTES:]
    if content[:_DIGEST_BYTES] != _digest(key, rest):
        return NOTHING
    with contextlib.suppress(OSError):
        os.utime(path)
    (count,) = np.frombuffer(rest, "<i8", 1).tolist()
    keys = np.frombuffer(rest, "<u8", count, 8)
    ends = np.frombuffer(rest, "<i8", count, 8 + 8 * count)
    return Sentences(keys, ends, np.frombuffer(rest, "<i4", -1, 8 + 16 * count))


def keep(key: str, sentences: Sentences) -> None:
    """Keep sentences as far as there is room for them; never raises."""
    path, size = _path(key), _DIGEST_BYTES + 8 + 16 * len(sentences) + sentences.ids.nbytes
    if path is None or size > MOST_BYTES_OF_ONE:
        return
    columns = (("<u8", sentences.keys), ("<i8", sentences.ends), ("<i4", sentences.ids))
    content = np.array([len(sentences)], "<i8").tobytes()
    content += b"".join(np.ascontiguousarray(column, kind).tobytes() for kind, column in columns)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if cache.make_room(path.parent, size, MOST_BYTES, MOST_FILES) and size <= cache.room(path.parent):
            write_atomically(path, _digest(key, content) + content, sync=False)


def _path(key: str) -> Path | None:
    try:
        return cache.root() / FOLDER / key
    except UsageError:
        return None


def _digest(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + content).digest()
