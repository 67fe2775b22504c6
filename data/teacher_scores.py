"""What a teacher says of examples, kept on disk by the content of each, under a digest of all that decides it.

    DIVAN_CACHE/teachers/KEY    digest of KEY and the rest, N int64, N times (key [16], shape int32 [4]), float32 [...]

KEY stands for the teacher: other weights, another shape, code or precision are another KEY. An example is found by a
digest of what the model reads, so that a file which gains, loses or reorders rows keeps the scores of the others. What
lies there and does not have its digest is not believed; the least recently used files go first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl.app import UsageError

from ground import cache
from ground.files import write_atomically

FOLDER = "teachers"
KEY_BYTES = 16
MOST_BYTES = 4 << 30
MOST_BYTES_OF_ONE = 1 << 30
MOST_FILES = 100
_AXES = 4
_DIGEST_BYTES = hashlib.sha256().digest_size
_ROW = np.dtype([("key", np.void, KEY_BYTES), ("shape", "<i4", _AXES)])
_SCORE = np.dtype("<f4")

Scores = dict[bytes, np.ndarray]
"""Key of an example -> float32 [outputs, rows, tokens or 1, classes]."""


def read(key: str) -> Scores:
    """Return all that is known of a teacher; nothing where there is no file, or not the one that was written."""
    path = _path(key)
    if path is None:
        return {}
    try:
        status = path.lstat()  # a pipe would be waited for
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES_OF_ONE:
            return {}
        content = path.read_bytes()
    except OSError:
        return {}
    rest = content[_DIGEST_BYTES:]
    if content[:_DIGEST_BYTES] != _digest(key, rest):
        return {}
    with contextlib.suppress(OSError):
        os.utime(path)
    (count,) = np.frombuffer(rest, "<i8", 1)
    rows = np.frombuffer(rest, _ROW, count, 8)
    ends = np.cumsum(rows["shape"].prod(axis=1, dtype=np.int64)).tolist()
    values = np.frombuffer(rest, _SCORE, -1, 8 + rows.nbytes)
    return {
        name.tobytes(): values[begin:end].reshape(shape)
        for name, shape, begin, end in zip(rows["key"], rows["shape"].tolist(), [0, *ends], ends, strict=False)
    }


def write(key: str, scores: Scores, former: Scores) -> None:
    """Keep the scores of this run, and what was known of other examples as far as there is room; never raises."""
    path = _path(key)
    if path is None:
        return
    kept, size = dict(scores), _DIGEST_BYTES + 8 + sum(_ROW.itemsize + value.nbytes for value in scores.values())
    for name, value in former.items():
        more = _ROW.itemsize + value.nbytes
        if name not in kept and size + more <= MOST_BYTES_OF_ONE:
            kept[name], size = value, size + more
    if size > MOST_BYTES_OF_ONE:
        return
    rows = np.zeros(len(kept), _ROW)
    rows["key"] = np.frombuffer(b"".join(kept), np.dtype((np.void, KEY_BYTES)))
    rows["shape"] = [value.shape for value in kept.values()]
    values = b"".join(np.ascontiguousarray(value, _SCORE).tobytes() for value in kept.values())
    content = np.array([len(kept)], "<i8").tobytes() + rows.tobytes() + values
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if cache.make_room(path.parent, size, MOST_BYTES, MOST_FILES) and size <= cache.room(path.parent):
            write_atomically(path, _digest(key, content) + content, sync=False)


def key_of(parts: Mapping[str, bytes]) -> str:
    """Return the name of the file of a teacher that these parts decide."""
    digest = hashlib.sha256()
    for name, part in sorted(parts.items()):
        digest.update(f"{name} {len(part)} ".encode() + part)
    return digest.hexdigest()


def _path(key: str) -> Path | None:
    try:
        return cache.root() / FOLDER / key
    except UsageError:
        return None


def _digest(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + content).digest()
