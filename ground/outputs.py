"""One guard for every verb: what it reads is never written over, nor a file that it did not write itself.

A verb proves that it wrote a file by what lies beside the file: a manifest, a `run.json`, or the record that
`note_written` keeps, hidden in the file's folder.

    .divan.json    {"files": {"vocab.txt": {"verb": "train_tokenizer", "bytes": 109540}}}
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from absl.app import UsageError

from ground.documents import read_json
from ground.files import write_atomically

RECORD = ".divan.json"
_LEFT_OVER = re.compile(r"\.(.+)\.\d+\.tmp")  # as `ground.files.write_atomically` names what it has not finished
MAX_NAME_BYTES = 235
"""A file system takes 255; the names of unfinished files are somewhat longer than their own."""


def never(path: Path) -> bool:
    """Return that a file is of somebody else."""
    del path
    return False


@dataclass(frozen=True)
class Target:
    """A file or a folder that a verb is about to write, to replace or to remove.

    Attributes:
        path: of it.
        flag: that names it, with its dashes.
        ours: whether what lies there was written by the verb.
        proof: what would show that, for the error.
        folder: the whole folder is replaced.
        reads_own: flags that may read the file where it is the verb's own, because it is written with the same content.
    """

    path: Path
    flag: str
    ours: Callable[[Path], bool] = never
    proof: str = "no record of it lies beside it"
    folder: bool = False
    reads_own: tuple[str, ...] = ()


_noted: dict[str, list[Path]] = {}


def note_read(flag: str, path: str | os.PathLike[str] | None) -> None:
    """Remember one file that this process reads whatever the verb, such as `--config`; None forgets that of `flag`."""
    _noted[flag] = [] if path is None else [Path(path)]


def check_outputs(reads: Mapping[str, Iterable[str | os.PathLike[str] | None]], targets: Iterable[Target]) -> None:
    """Raise `UsageError` for the first target that is read, or that exists and is not the verb's own.

    Two names are one file where they lead to the same inode (symbolic and hard links) or resolve to one path.

    Args:
        reads: files and folders that the verb reads, by the flag that names them, with its dashes; None is left out.
        targets: all that it will write.
    """
    sources = [(flag, Path(path)) for flag, paths in {**_noted, **reads}.items() for path in paths if path]
    by_identity = {key: source for source in sources for key in _identities(source[1])}
    resolved: list[tuple[str, Path, str]] | None = None
    for target in targets:
        if (size := len(os.fsencode(target.path.name))) > MAX_NAME_BYTES:
            name = f"{target.path.name[:40]}..."
            raise UsageError(f"{target.flag}: {name} has {size} bytes, a name has at most {MAX_NAME_BYTES}: shorten it")
        exists = os.path.lexists(target.path)
        own = exists and target.ours(target.path)
        same = next((by_identity[key] for key in _identities(target.path) if key in by_identity), None)
        if same is None and target.folder and exists:
            resolved = resolved or [(flag, path, os.path.realpath(path)) for flag, path in sources]
            above = os.path.realpath(target.path) + os.sep
            same = next(((flag, path) for flag, path, real in resolved if real.startswith(above)), None)
        if same is not None and not (own and same[0] in target.reads_own):
            raise UsageError(
                f"{target.flag} would write over {same[1]}, which {same[0]} reads: give {target.flag} another name"
            )
        if not target.folder and target.path.is_dir():
            raise UsageError(
                f"{target.flag}: {target.path} is a folder, but a file of this name is written: move the folder away"
            )
        if exists and not own:
            raise UsageError(
                f"{target.flag}: {target.path} exists and is not known to be an earlier output of this command "
                f"({target.proof}): give another name, or delete it"
            )


def _identities(path: Path) -> list[tuple[int, int] | str]:
    """Return by what a file is known: its resolved path, and its inode if it exists."""
    keys: list[tuple[int, int] | str] = [os.path.realpath(path)]
    try:
        status = path.stat()
    except OSError:
        return keys
    return [*keys, (status.st_dev, status.st_ino)]


def note_written(folder: Path, verb: str, names: Iterable[str]) -> None:
    """Enter files of `folder`, as they are now, in its record of what verbs wrote; raises `OSError`."""
    kept = {name: entry for name, entry in _record(folder).items() if _is_as_written(folder / name, entry)}
    new = {name: {"verb": verb, "bytes": (folder / name).stat().st_size} for name in sorted(names)}
    write_atomically(folder / RECORD, json.dumps({"files": kept | new}, indent=2, ensure_ascii=False) + "\n")


def announce(folder: Path, verb: str, sizes: Mapping[str, int]) -> None:
    """Enter files of `folder` by the sizes in which they are about to be written; raises `OSError`.

    A kill between the two leaves nothing that the verb does not know as its own: the former size is kept as well.
    """
    kept = {name: entry for name, entry in _record(folder).items() if _is_as_written(folder / name, entry)}
    new = {
        name: {"verb": verb, "bytes": size}
        | ({"former": (folder / name).stat().st_size} if was_written(folder / name, verb) else {})
        for name, size in sorted(sizes.items())
    }
    write_atomically(folder / RECORD, json.dumps({"files": kept | new}, indent=2, ensure_ascii=False) + "\n")


def was_written(path: Path, verb: str) -> bool:
    """Return whether the record beside a file says that `verb` wrote it, in its present size."""
    entry = _record(path.parent).get(path.name)
    return isinstance(entry, dict) and entry.get("verb") == verb and _is_as_written(path, entry)


def is_left_over(path: Path, verb: str) -> bool:
    """Return whether a file is what a kill left of the record beside it, or of a file that `verb` had announced."""
    found = _LEFT_OVER.fullmatch(path.name)
    if found is None or path.is_symlink() or not path.is_file():
        return False
    entry = _record(path.parent).get(found[1])
    return found[1] == RECORD or (isinstance(entry, dict) and entry.get("verb") == verb)


def plain_file(path: Path, size: object) -> bool:
    """Return whether a path is a file itself, no link to one, of `size` bytes."""
    return not path.is_symlink() and path.is_file() and path.stat().st_size == size


def plain_name(name: object) -> bool:
    """Return whether `name` is that of a file of some folder: no path, no `..`, no text without letters."""
    return isinstance(name, str) and name not in ("", ".", "..") and not any(mark in name for mark in "/\\\0")


def _is_as_written(path: Path, entry: object) -> bool:
    if not plain_name(path.name) or not isinstance(entry, dict):
        return False
    return any(plain_file(path, entry.get(size)) for size in ("bytes", "former"))


class _Record(TypedDict):
    """The record beside files that verbs wrote."""

    files: dict[str, dict[str, object]]


def _record(folder: Path) -> dict[str, object]:
    """Return the entries of a folder's record; none where it has none that can be read."""
    try:
        content = read_json(folder / RECORD, _Record, what="a record of what was written")
    except (OSError, UsageError):
        return {}
    return {name: entry for name, entry in content["files"].items() if plain_name(name)}
