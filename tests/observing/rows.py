"""The form of the table flag -> what it changes, and how one run of a verb is observed without training anything."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from absl.app import UsageError
from observing.plain import digest, places, plain

from commands.flags import parse
from ground.outputs import RECORD

WORLD = "{world}"
"""Stands, in the flags of the tables, for the folder of the shared inputs."""
ABSENT = "nothing is there"
"""What is at a place that a run does not have."""


class _Different:
    def __repr__(self) -> str:
        return "DIFFERENT"


DIFFERENT = _Different()
"""Any other value than without the flag."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One flag with a second value, and all that differs between a run with it and a run without it.

    Attributes:
        flag: its name.
        value: the second value, as it is typed.
        changes: place -> value there with the flag, `DIFFERENT`, `ABSENT` or an expression to be found in it; a place
            stands for all below it. A row without any says that nothing changes.
        given: further flags of both runs.
        machine: where both runs are, a name that the verb's `replaced` knows.
        reason: why a flag that changes nothing exists.
    """

    flag: str
    value: str
    changes: Mapping[str, Any]
    given: Mapping[str, str] = dataclasses.field(default_factory=dict)
    machine: str = "cpu"
    reason: str = ""

    def __str__(self) -> str:
        where = "" if self.machine == "cpu" else f"-{self.machine}"
        return f"{self.flag}={self.value.replace(WORLD, '')}{where}"


class Notes:
    """What the recorders saw; a second note of a name is kept as "name (2)"."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def add(self, name: str, value: Any) -> None:
        numbers = itertools.count(2)
        place = name
        while place in self.seen:
            place = f"{name} ({next(numbers)})"
        self.seen[place] = value


def stand_in(patch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    """Let `import NAME` find a module of these members alone, so that the real one is not imported."""
    module = ModuleType(name)
    module.__dict__.update(members)
    patch.setitem(sys.modules, name, module)


Replaced = Callable[[pytest.MonkeyPatch, Notes, str], None]


@dataclasses.dataclass(frozen=True)
class Verb:
    """A root verb, the flags of its ordinary run and the table of its flags.

    Attributes:
        module: holds `Options` and `main`.
        base: flags of every run.
        rows: the table.
        replaced: puts recorders in the place of what is slow, on the machine of that name.
        content: a file that a run wrote -> what is observed of it; None: not even its name.
        prints: whether the lines on stdout are observed.
    """

    module: ModuleType
    base: Mapping[str, str]
    rows: Sequence[Row]
    replaced: Replaced
    content: Callable[[Path], Any]
    prints: bool = False

    def observe(self, flags: Mapping[str, str], machine: str, world: Path, folder: Path) -> dict[str, Any]:
        """Run the verb in the empty `folder` with its base flags and `flags`; return what is at every place."""
        given = {name: value.replace(WORLD, str(world)) for name, value in {**self.base, **flags}.items()}
        notes, printed = Notes(), io.StringIO()
        # Messages name the folder that the run is in: it has one name in all of them.
        folder = folder / "here"
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()):
            patch.chdir(folder)
            self.replaced(patch, notes, machine)
            try:
                options = parse(self.module.Options, [f"--{name}={value}" for name, value in given.items()])
                with contextlib.redirect_stdout(printed):
                    notes.add("exit code", self.module.main(options))
            except UsageError as error:
                notes.add("error", str(error))
        files = {
            path.relative_to(folder).as_posix(): self.content(path)
            for path in folder.rglob("*")
            if path.is_file() and path.name != RECORD
        }
        notes.add("files", {name: content for name, content in files.items() if content is not None})
        if self.prints:
            notes.add("printed", printed.getvalue().splitlines())
        return places(plain(notes.seen))


def file_content(path: Path) -> Any:
    """Return the values of a JSON file, the digest of any other."""
    return json.loads(path.read_bytes()) if path.suffix == ".json" else digest(path.read_bytes())


def is_at(place: str, name: str) -> bool:
    """Return whether `place` is the one called `name`, below it, or a file or a repetition of that name."""
    return place.startswith(name) and place[len(name) :][:1] in ("", "/", ".", " ")


def differences(without: Mapping[str, Any], with_flag: Mapping[str, Any]) -> dict[str, Any]:
    """Return, by place, what is there with the flag and was not there without it."""
    everywhere = dict.fromkeys([*without, *with_flag])
    pairs = {place: (without.get(place, ABSENT), with_flag.get(place, ABSENT)) for place in everywhere}
    return {
        place: after for place, (before, after) in pairs.items() if type(before) is not type(after) or before != after
    }


def agrees(found: Any, expected: Any) -> bool:
    """Return whether what is found at a place is what a row says."""
    if expected is DIFFERENT:
        return True
    if isinstance(expected, re.Pattern):
        return bool(expected.search("\n".join(found) if isinstance(found, tuple) else str(found)))
    return found == expected
