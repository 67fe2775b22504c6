"""--input_file -> files, grouped by the language of their text.

Example:
    a.txt,b/*.txt                 text of one language, which nobody says
    en=a.txt,zh=b/*.txt           of several
    a.en:a.zh                     two files, line n of one the translation of line n of the other
    en-zh=a.en:a.zh,en-zh=b.tsv   the same with its languages, and a file of two columns with a TAB between
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from absl.app import UsageError

from data.corpus.parallel import BETWEEN, sides_of
from data.corpus.tfds import PREFIX, is_tfds
from data.languages import find_language, is_pair

# Words before an equals sign; a file or a pattern that has one is found as it is.
_NAMED = re.compile(r"([A-Za-z][A-Za-z_-]{0,39})=(.+)", re.DOTALL)


@dataclass
class Corpus:
    """Inputs of one language.

    Attributes:
        language: its code, or two of parallel text; empty where it is not said.
        text: "documents" or "pairs" (`Objective.text`); empty where the names of the inputs do not tell.
        inputs: files, `tfds:` names and parallel files.
    """

    language: str = ""
    text: str = ""
    inputs: list[Path] = field(default_factory=list)


def find_corpora(patterns: str | Sequence[str]) -> list[Corpus]:
    """Return the inputs of --input_file by their languages, in the order in which these are named.

    Raises:
        UsageError: a pattern matches no file, a language is unknown, or some inputs have one and others none; or what
            a name says of its text contradicts its language or the other inputs.
    """
    corpora: dict[str, Corpus] = {}
    for name in _names(patterns):
        language, found = _named(name)
        corpus = corpora.setdefault(language, Corpus(language))
        text = _text_of(name, language, found)
        if corpus.inputs and text != corpus.text:
            raise UsageError(
                f"--input_file={name}: pairs of sentences beside documents; give each its languages, as in "
                "en=FILE,en-zh=FIRST:SECOND, or make them by two commands"
            )
        corpus.text = text
        corpus.inputs += [path for path in found if path not in corpus.inputs]
    if "" in corpora and len(corpora) > 1:
        without, code = corpora[""].inputs[0], next(language for language in corpora if language)
        raise UsageError(
            f"--input_file={without}: no language, but another input is {code}=...; give the language of every input, "
            "or of none"
        )
    return list(corpora.values())


def expand_inputs(patterns: str | Sequence[str]) -> list[Path]:
    """Return the files of --input_file: comma-separated glob patterns, sorted within each; none twice.

    `tfds:NAME` is kept, and so is `FIRST:SECOND` of line-aligned files.

    Raises:
        UsageError: a pattern matches no file, or there is none.
    """
    found = (path for name in _names(patterns) for path in _found(name) or _missing(name, name))
    return list(dict.fromkeys(found))


def _names(patterns: str | Sequence[str]) -> list[str]:
    if isinstance(patterns, str):
        patterns = [patterns]
    names = [name.strip() for pattern in patterns for name in pattern.split(",") if name.strip()]
    if not names:
        raise UsageError("--input_file: no input given; expected files or glob patterns, separated by commas")
    return names


def _named(name: str) -> tuple[str, list[Path]]:
    """Return the language of an input, empty where none is named, and its files."""
    found, named = _found(name), _NAMED.fullmatch(name)
    if found or not named:
        return "", found or _missing(name, name)
    return find_language(named[1], f"--input_file={name}"), _found(named[2]) or _missing(name, named[2])


def _text_of(name: str, language: str, found: Sequence[Path]) -> str:
    """Return what the names of inputs say of their text."""
    parallel = [path for path in found if sides_of(path)]
    if is_pair(language) and any(is_tfds(path) for path in found):
        raise UsageError(f"--input_file={name}: tfds examples are documents; give pairs of sentences as files")
    if language and parallel and not is_pair(language):
        raise UsageError(
            f"--input_file={name}: two files are of two languages; give both codes, as in en-zh=FIRST{BETWEEN}SECOND"
        )
    if is_pair(language) or parallel:
        return "pairs"
    return "documents" if language else ""


def _found(name: str) -> list[Path]:
    """Return the files of a pattern; maybe none."""
    path = Path(name).expanduser()
    if name.startswith(PREFIX) or path.is_file() or sides_of(path):
        return [path]
    if path.is_dir():
        return []
    matches = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
    # As in a shell, '*' does not match hidden files: half-written files are hidden.
    return sorted(p for p in matches if p.is_file() and (p.name[0] != "." or path.name[0] == "."))


def _missing(name: str, pattern: str) -> list[Path]:
    """Raise `UsageError` for a pattern without a file; `name` is how the user wrote it."""
    path = Path(pattern).expanduser()
    hint = f"a folder; did you mean {path / '*'}" if path.is_dir() else "no file matches; check the path"
    first, between, second = pattern.partition(BETWEEN)
    if between and (here := [Path(part).expanduser().is_file() for part in (first, second)]) and any(here):
        hint = f"there is no file {second if here[0] else first}; expected two files with as many lines each"
    raise UsageError(f"--input_file={name}: {hint}")
