"""Files are written so that a reader finds either the old content or the new, never half of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Give every `OSError` raised inside a file name, which a failed write (disk full) does not carry by itself."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


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
