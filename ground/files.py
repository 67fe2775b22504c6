"""Files are written so that a reader finds either the old content or the new, never half of it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from absl.app import UsageError


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Give every `OSError` raised inside a file name, which a failed write (disk full) does not carry by itself."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def check_plain(path: Path) -> Path:
    """Return `path`; raises `UsageError` where it is neither a file nor a folder, `OSError` where nothing is there.

    A pipe would be waited for until somebody writes to it, and some devices have no end.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kind = "pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"
        raise UsageError(f"{path} is a {kind}: expected a file; write its content to one")
    return path


def real(path: Path) -> Path:
    """Return the absolute path without links; links in a ring, an error for `Path.resolve`, are left as they are."""
    return Path(os.path.realpath(path))


def printable(path: Path) -> str:
    """Return a path as text that a UTF-8 file can hold; bytes that are no UTF-8 are written as in Python."""
    return str(path).encode(errors="backslashreplace").decode()


def open_new(path: Path, mode: str = "xb") -> IO[Any]:
    """Open a temporary file that is made anew; what lies under its name, such as a link to elsewhere, is not followed.

    `mode` begins with x. Raises `OSError`.
    """
    path.unlink(missing_ok=True)
    return path.open(mode)


def write_atomically(path: str | os.PathLike[str], content: str | bytes | memoryview, *, sync: bool = True) -> None:
    """Write `content` (text as UTF-8) beside `path`, sync it and rename it; creates the folder.

    Without `sync` the file outlives a crash of the process but maybe not one of the machine.

    Raises `OSError` that names the path; the former file is then unchanged.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with naming(target), open_new(temporary) as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            if sync:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
