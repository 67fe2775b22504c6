"""The folder in which downloads, unpacked archives and tokens stay for later runs: `$DIVAN_CACHE`, or ~/.cache/divan.

    downloads/HOST--NAME--KEY/    a file, what is known of it, and what is in it if it is an archive
    archives/NAME--KEY/           what is in an archive of this machine
    tokens/KEY                    the tokens of many texts
    teachers/KEY                  what a teacher says of examples

It may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from absl.app import UsageError

from ground.addresses import plain
from ground.locks import holding

VARIABLE = "DIVAN_CACHE"
MOST_BYTES = 200 * 10**9
"""Of a download, or of what an archive holds: the 27 billion parameters of PLUG, the largest model, are 108 GB."""
SPARE_BYTES = 64 * 2**20
"""Stays free on a disk, for all else that writes there."""
MAKE_ROOM = f"free some, or set {VARIABLE} to a folder of another disk"
_MOST_WAITING_SECONDS = 6 * 3600
"""As long as 200 GB take at 10 MB a second; what another process needs longer for is not waited for."""
_DIGEST_NAMES = re.compile(r"[0-9a-f]{64}|\.[0-9a-f]{64}\.\d+\.tmp")
_digests: dict[tuple[str, int, int, int], str] = {}


def root() -> Path:
    """Return the folder, which need not exist; raises `UsageError` where there is no place for it."""
    if given := os.environ.get(VARIABLE, "").strip():
        return Path(given)
    try:
        return Path.home() / ".cache" / "divan"
    except RuntimeError:
        raise UsageError(f"no home folder to keep downloads in: set {VARIABLE} to a folder") from None


def entry(kind: str, *names: str, key: str) -> Path:
    """Return the folder of one thing: readable by its names, told from others by the key."""
    return root() / kind / "--".join([*(plain(name) for name in names), hashlib.sha256(key.encode()).hexdigest()[:16]])


@contextlib.contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder of the cache inside; another process that holds it is waited for. Raises what `holding` does."""
    with holding(folder / ".lock", what, wait_seconds=_MOST_WAITING_SECONDS):
        yield


def room(folder: Path) -> int:
    """Return how many bytes may still be written to an existing folder."""
    return max(0, shutil.disk_usage(folder).free - SPARE_BYTES)


def make_room(folder: Path, size: int, most_bytes: int, most_files: int) -> bool:
    """Remove the least recently used files of digests until one of `size` bytes fits; return whether it does.

    Several processes may do so at once: what another one has removed is as good as removed. Files of other names stay.

    Args:
        folder: that is to hold the file.
        size: of the file, in bytes.
        most_bytes: that all files may have together.
        most_files: that there may be.
    """
    files = []
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            if _DIGEST_NAMES.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                files.append((status.st_mtime_ns, status.st_size, entry.path))
    total, number = size + sum(size for _, size, _ in files), len(files) + 1
    for _, freed, path in sorted(files):
        if total <= most_bytes and number <= most_files:
            break
        with contextlib.suppress(OSError):
            Path(path).unlink(missing_ok=True)
            total, number = total - freed, number - 1
    return total <= most_bytes and number <= most_files


def digest(file: Path) -> str:
    """Return the SHA-256 of a file, computed once in a process as long as size and time stay the same."""
    status = file.stat()
    key = (os.path.realpath(file), status.st_size, status.st_mtime_ns, status.st_ino)
    if key not in _digests:
        with file.open("rb") as stream:
            _digests[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    return _digests[key]
