"""Tokens of many texts, kept on disk for the next run under a digest of everything that decides them.

    DIVAN_CACHE/tokens/KEY    digest of KEY and the rest | splits int64 [T + 1] | ids int32 [N] | offsets, if asked for

A changed text, vocabulary, casing, tokenizer's code or library is another KEY, so nothing can be out of date. What lies
there and does not have its digest is not believed, and whatever the disk refuses is done without: the tokens are then
made anew. The least recently used files go first; all of them may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import stat
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl.app import UsageError

import data.tokenizers
import ground.ragged
from data.tokenizers import Encoding
from ground import cache
from ground.files import write_atomically

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer

VARIABLE = "DIVAN_TOKEN_CACHE"
LEAST_CHARACTERS = 1 << 18
"""Fewer are not looked for: SentencePiece, the slowest tokenizer here, takes a quarter of a second for them."""
LEAST_SECONDS = 0.5
"""Tokens that took less are not kept."""
MOST_BYTES = 4 << 30
MOST_BYTES_OF_ONE = 1 << 30
MOST_FILES = 1000
FORMAT = "1"

_TYPES = {
    "splits": np.dtype(np.int64),
    "ids": np.dtype(np.int32),
    "starts": np.dtype(np.int32),
    "ends": np.dtype(np.int32),
    "continuation": np.dtype(np.bool_),
}
_IDS = ("splits", "ids")
_DIGEST_BYTES = hashlib.sha256().digest_size
_BLOCK_TEXTS = 1 << 16
_found: Counter[str] = Counter()


def ids_of(texts: Sequence[str], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Return `ids` int32 [N] and `splits` int64 [T + 1] of `tokenizer.encode_batch(texts)`, from the disk or anew."""
    columns = _columns(texts, tokenizer, _IDS)
    return columns["ids"], columns["splits"]


def encoding_of(texts: Sequence[str], tokenizer: Tokenizer) -> Encoding:
    """Return `tokenizer.encode_batch(texts)`, from the disk or anew."""
    return Encoding(**_columns(texts, tokenizer, tuple(_TYPES)))


def told() -> str:
    """Return what was found on the disk since the last call, as a line for the user; empty for nothing."""
    line = ", ".join(f"tokens of {number:,} texts from the cache {folder}" for folder, number in _found.items())
    _found.clear()
    return line


def key_of(texts: Sequence[str], tokenizer: Tokenizer, names: Sequence[str] = _IDS) -> str:
    """Return the hexadecimal digest of all that decides the named columns of an encoding.

    The texts are hashed as their lengths and their characters, in blocks: no two lists of texts look alike.
    """
    digest = hashlib.sha256(_SURROUNDINGS)
    _add(digest, tokenizer.fingerprint.encode())
    _add(digest, " ".join([str(tokenizer.vocab_size), *names]).encode())
    for begin in range(0, len(texts), _BLOCK_TEXTS):
        block = texts[begin : begin + _BLOCK_TEXTS]
        _add(digest, np.fromiter(map(len, block), np.int64, len(block)).tobytes())
        _add(digest, "".join(block).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _add(digest: hashlib._Hash, part: bytes) -> None:
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)


def _surroundings(sources: Iterable[Path]) -> bytes:
    """Return what decides tokens beside tokenizer and texts: code, library, Unicode's tables, the order of bytes."""
    digest = hashlib.sha256()
    for path in sources:
        _add(digest, path.name.encode())
        with contextlib.suppress(OSError):  # an installation without sources: the fingerprint has the code's version
            _add(digest, path.read_bytes())
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        _add(digest, importlib.metadata.version("sentencepiece").encode())
    _add(digest, f"{FORMAT} {unicodedata.unidata_version} {sys.byteorder}".encode())
    return digest.digest()


# At import, so that the code is that of this process, also where somebody edits it while the process runs.
_SURROUNDINGS = _surroundings(
    [*sorted(Path(data.tokenizers.__file__).parent.glob("*.py")), Path(ground.ragged.__file__)]
)


def _columns(texts: Sequence[str], tokenizer: Tokenizer, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the named columns of the encoding of the texts."""
    folder = _folder() if sum(map(len, texts)) >= LEAST_CHARACTERS else None
    if folder is None:
        return _encoded(texts, tokenizer, names)
    key = key_of(texts, tokenizer, names)
    if (found := _read(folder / key, len(texts), tokenizer.vocab_size, names)) is not None:
        _found[str(folder)] += len(texts)
        return found
    began = time.perf_counter()
    columns = _encoded(texts, tokenizer, names)
    if time.perf_counter() - began >= LEAST_SECONDS:
        _write(folder / key, columns)
    return columns


def _encoded(texts: Sequence[str], tokenizer: Tokenizer, names: Sequence[str]) -> dict[str, np.ndarray]:
    encoding = tokenizer.encode_batch(texts)
    return {name: getattr(encoding, name) for name in names}


def _folder() -> Path | None:
    """Return the folder of the tokens, or None where there is to be no cache or no place for one."""
    if os.environ.get(VARIABLE, "").strip().lower() in ("0", "off", "no", "false"):
        return None
    try:
        return cache.root() / "tokens"
    except UsageError:
        return None


def _read(path: Path, num_texts: int, vocab_size: int, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Return the columns that a file holds, or None where it is not there or not what was written."""
    per_token = sum(_TYPES[name].itemsize for name in names if name != "splits")
    before_tokens = _DIGEST_BYTES + _TYPES["splits"].itemsize * (num_texts + 1)
    try:
        status = path.lstat()  # a pipe would be waited for
        num_tokens, rest = divmod(status.st_size - before_tokens, per_token)
        if not stat.S_ISREG(status.st_mode) or rest or num_tokens < 0 or status.st_size > MOST_BYTES_OF_ONE:
            return None
        content = bytearray(status.st_size)
        with path.open("rb") as stream:
            if stream.readinto(content) != len(content):
                return None
    except OSError:
        return None
    if content[:_DIGEST_BYTES] != _digest(path.name, memoryview(content)[_DIGEST_BYTES:]):
        return None
    columns, place = {}, _DIGEST_BYTES
    for name in names:
        count = num_texts + 1 if name == "splits" else num_tokens
        columns[name] = np.frombuffer(content, _TYPES[name], count, place)
        place += columns[name].nbytes
    if not _plausible(columns, num_tokens, vocab_size):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return columns


def _digest(key: str, content: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(key.encode())
    digest.update(content)
    return digest.digest()


def _plausible(columns: Mapping[str, np.ndarray], num_tokens: int, vocab_size: int) -> bool:
    """Whether columns that somebody else may have written can be used without a further look."""
    splits, ids = columns["splits"], columns["ids"]
    if splits[0] != 0 or splits[-1] != num_tokens or (splits[1:] < splits[:-1]).any():
        return False
    if ids.min(initial=0) < 0 or ids.max(initial=0) >= vocab_size:
        return False
    if "starts" not in columns:
        return True
    starts, ends, continuation = (columns[name] for name in ("starts", "ends", "continuation"))
    return bool(
        starts.min(initial=0) >= 0 and (starts <= ends).all() and continuation.view(np.uint8).max(initial=0) <= 1
    )


def _write(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Keep columns, in the order of their names, if there is room for them and the disk takes them."""
    if any(column.dtype != _TYPES[name] for name, column in columns.items()):
        return
    size = _DIGEST_BYTES + sum(column.nbytes for column in columns.values())
    if size > MOST_BYTES_OF_ONE:
        return
    content = b"".join(column.tobytes() for column in columns.values())
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if cache.make_room(path.parent, size, MOST_BYTES, MOST_FILES) and size <= cache.room(path.parent):
            # Not synced: a file that a crash of the machine cut off has not its digest.
            write_atomically(path, _digest(path.name, content) + content, sync=False)
