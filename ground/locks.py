"""Locks that keep a second run out of an output; the system releases them when a process ends, however it ends.

The lock is `flock` on a file whose content names the process that holds it, for the error of the one that comes second.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl.app import UsageError

from ground.documents import parse_json
from ground.progress import format_duration

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY)
_MOST_BYTES = 4096
_LOOK_SECONDS = 0.2
_TELL_SECONDS = 300


@contextlib.contextmanager
def holding(
    path: Path, what: str, *, keep: Callable[[], bool] = lambda: False, wait_seconds: float = 0.0
) -> Iterator[None]:
    """Hold the lock file `path` inside, and remove it afterwards; its folder is made, and removed if it stays empty.

    Args:
        path: of the lock file.
        what: is locked, for the error: `--output_dir=out`.
        keep: is asked at the end whether the file stays, unlocked; where the folder holds nothing else it goes.
        wait_seconds: how long another process that holds it is waited for, which is said on stderr now and then.

    Raises:
        UsageError: another process holds it, and still does after `wait_seconds`.
    """
    made = _make_folders(path.parent)
    try:
        descriptor = _acquire(path, what, wait_seconds)
        try:
            yield
        finally:
            # Removed while it is held: a process that has opened it by then finds that it has no name, and makes
            # another one.
            alone = all(entry == path for entry in path.parent.iterdir())
            if alone or not keep():
                path.unlink(missing_ok=True)
            os.close(descriptor)
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def is_lock(path: Path) -> bool:
    """Return whether a file is the lock of a run, held or left behind by one that was killed."""
    try:
        return not path.is_symlink() and "pid" in _owner_in(path.read_bytes())
    except OSError:
        return False


def _owner_in(content: bytes) -> dict[str, Any]:
    try:
        return parse_json(content, dict[str, Any], where="a lock", what="a lock")
    except UsageError:
        return {}


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it; return the new ones, the deepest first."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _acquire(path: Path, what: str, wait_seconds: float) -> int:
    from filelock import lock_descriptor

    started, told = time.monotonic(), -float(_TELL_SECONDS)
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except FileNotFoundError:
            if not wait_seconds:
                raise
            path.parent.mkdir(parents=True, exist_ok=True)  # the one that was waited for left nothing, nor its folder
            continue
        try:
            content = os.pread(descriptor, _MOST_BYTES, 0)
            if content and "pid" not in _owner_in(content):
                raise UsageError(f"{what}: {path} is not the lock of a run: move it away")
            if not _locked(descriptor, path, lock_descriptor):
                waited = time.monotonic() - started
                if waited >= wait_seconds:
                    fix = "wait for it to end" + ("" if wait_seconds else ", or give another name")
                    raise UsageError(f"{what} is in use by {_described(content)}: {fix}")
                if content and waited >= told + _TELL_SECONDS:
                    told = waited
                    most = format_duration(wait_seconds - waited)
                    print(f"{what}: waiting for {_described(content)}, {most} at most", file=sys.stderr, flush=True)
                time.sleep(_LOOK_SECONDS)
            elif _is_still(path, descriptor):
                _tell_owner(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _locked(descriptor: int, path: Path, lock: Any) -> bool:
    try:
        return lock(descriptor, blocking=False)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print(f"warning: the file system of {path} has no locks: start no second run there", file=sys.stderr)
        return True


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the file that was locked still has its name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _tell_owner(descriptor: int) -> None:
    owner = {"pid": os.getpid(), "host": platform.node(), "command": Path(sys.argv[0]).name}
    content = json.dumps(owner | {"since": time.strftime("%Y-%m-%d %H:%M:%S")}).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content, 0)


def _described(content: bytes) -> str:
    owner = _owner_in(content)
    return "process {pid} on {host} ({command}, since {since})".format_map(
        {name: owner.get(name, "?") for name in ("pid", "host", "command", "since")}
    )
