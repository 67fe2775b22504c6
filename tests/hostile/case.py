"""One hostile case: a verb, its flags, the files that lie around it, and the answer that is expected."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

Expectation = Literal["refuse", "succeed", "either", "refuse or name"]
"""A refusal in one line; success; one of the two; or, besides a refusal, success with a word about the change."""
CASE = "{case}"
"""Stands, in flags and texts, for the folder of the case."""


@dataclasses.dataclass(frozen=True)
class Link:
    """A file that is another name of `target`, seen from the folder of the case."""

    target: str
    hard: bool = False


@dataclasses.dataclass(frozen=True)
class Special:
    """What is no file: a `pipe` or `socket` that nobody writes to, or a `folder`."""

    kind: str


Content = bytes | Link | Special
"""What lies under a name."""


@dataclasses.dataclass(frozen=True)
class Base:
    """An ordinary call of a verb that succeeds.

    Attributes:
        name: of the call.
        verb: the root module.
        flags: as they are typed, by name.
        uses: files and folders of the seeds that it reads.
        outputs: what it may write and change.
        reads: its flags whose value is a path that it reads.
        writes: its flags whose value is a path that it writes.
    """

    name: str
    verb: str
    flags: Mapping[str, str]
    uses: tuple[str, ...]
    outputs: tuple[str, ...] = ("out/",)
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Case:
    """A call, the changes of its files and what has to come of it.

    Attributes:
        kind: the class that made it.
        base: the ordinary call that was changed.
        flags: whole arguments, `CASE` in them is the folder.
        change: what was changed, for a person.
        expect: the answer.
        names: words of which a refusal holds one.
        files: content of files that are added or replaced; None removes one.
        outputs: what the call may write and change; all else has to stay as it is.
        uses: seeds that lie in the folder.
        trains: whether the steps of training are really computed.
        killed_at: kill the call at this time of writing, and then make it again; 0 does not.
        killed_after: seconds later.
    """

    kind: str
    base: str
    verb: str
    flags: tuple[str, ...]
    change: str
    expect: Expectation
    names: tuple[str, ...]
    uses: tuple[str, ...]
    outputs: tuple[str, ...]
    files: Mapping[str, Content | None] = dataclasses.field(default_factory=dict)
    trains: bool = False
    killed_at: int = 0
    killed_after: float = 0.0

    def place(self, seeds: Path, folder: Path) -> None:
        """Lay the files of the case into the empty `folder`."""
        for name in self.uses:
            source, target = seeds / name, folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, copy_function=shutil.copyfile, dirs_exist_ok=True)
            elif source.exists():
                shutil.copyfile(source, target)
        for name, content in self.files.items():
            target = folder / name
            if isinstance(content, bytes):
                if target.is_dir():
                    remove(target)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.replace(CASE.encode(), str(folder).encode()))
            elif content is None:
                remove(target)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                remove(target)
                if isinstance(content, Link):
                    link(target, content, folder)
                else:
                    make_special(target, content.kind)

    def arguments(self, folder: Path) -> list[str]:
        """Return the flags as they are typed in `folder`."""
        return [flag.replace(CASE, str(folder)) for flag in self.flags]


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link(path: Path, to: Link, folder: Path) -> None:
    if to.hard:
        path.hardlink_to(folder / to.target)
    else:
        path.symlink_to(folder / to.target)


def make_special(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        # A socket's name is short, wherever its folder is.
        with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)


def change(
    base: Base,
    kind: str,
    text: str,
    expect: Expectation,
    names: Sequence[str],
    *,
    flags: Mapping[str, str | None] | None = None,
    further: Sequence[str] = (),
    files: Mapping[str, Content | None] | None = None,
    uses: Sequence[str] = (),
    outputs: Sequence[str] | None = None,
    trains: bool = False,
) -> Case:
    """Return the case of `base` with other flags (None leaves one out), `further` arguments and other files."""
    given = {**base.flags, **(flags or {})}
    typed = (f"--{name}={value}" for name, value in given.items() if value is not None)
    return Case(
        kind=kind,
        base=base.name,
        verb=base.verb,
        flags=(*typed, *further),
        change=text,
        expect=expect,
        names=tuple(names),
        uses=(*base.uses, *uses),
        outputs=base.outputs if outputs is None else tuple(outputs),
        files=files or {},
        trains=trains,
    )
