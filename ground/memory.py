"""Sizes that are estimated before they are allocated, against the memory and the disk of this machine.

An estimate here is a lower bound: what it refuses cannot be held, and what it passes may still be too large.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from absl.app import UsageError

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def total_memory() -> int:
    """Return the bytes of memory that processes here may have, a container's limit included; 0 where nobody says."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
    for path in map(Path, _LIMITS):
        try:
            limit = path.read_text().strip()
        except OSError:
            continue
        if limit.isdecimal():
            memory = min(memory, int(limit))
    return memory


def check_memory(size: float, what: str, fix: str) -> None:
    """Raise `UsageError` where `what` takes `size` bytes, more memory than there is; `fix` says what to change."""
    memory = total_memory()
    if memory and size > memory:
        raise UsageError(f"{what} take at least {_shown(size)}, but this machine has {_shown(memory)} of memory: {fix}")


def check_disk(size: float, folder: Path, what: str, fix: str) -> None:
    """Raise `UsageError` where `what` takes `size` bytes, more than is free on the disk of `folder`."""
    there = next((path for path in (folder, *folder.absolute().parents) if path.is_dir()), None)
    if there is None:
        return
    free = shutil.disk_usage(there).free
    if size > free:
        raise UsageError(f"{what} take at least {_shown(size)}, but {there} has {_shown(free)} free: {fix}")


def _shown(size: float) -> str:
    for unit, scale in (("PiB", 2**50), ("TiB", 2**40), ("GiB", 2**30)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size / 2**20:,.1f} MiB"
