"""Two files whose lines are translations of each other: NAME.xx beside NAME.en or NAME.eng (Tatoeba of LASER)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from absl.app import UsageError

from tasks.readers.lines import read_lines

if TYPE_CHECKING:
    from tasks.datasets import DatasetRow

ENGLISH = (".en", ".eng")
# The codes of Tatoeba's files and those by which XTREME hands their languages in.
_CODES = """afr=af ara=ar ben=bn bul=bg cmn=zh deu=de ell=el est=et eus=eu fin=fi fra=fr heb=he hin=hi hun=hu ind=id
ita=it jav=jv jpn=ja kat=ka kaz=kk kor=ko mal=ml mar=mr nld=nl pes=fa por=pt rus=ru spa=es swh=sw tam=ta tel=te tgl=tl
tha=th tur=tr urd=ur vie=vi"""
CODES: Mapping[str, str] = {each[:3]: each[4:] for each in _CODES.split()}


def language_of(path: Path) -> str:
    """Return the end of the name of the foreign file of two; raises `UsageError` as `records` does."""
    return two_files(path)[0].suffix.lstrip(".")


def records(row: DatasetRow, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield every line of the foreign file as `text_a` and that of the English file as `text_b`; `group` is .xx.

    `path` is either of the two.

    Raises:
        UsageError: there is not one other file, an empty line, or the files have not as many lines.
    """
    foreign, english = two_files(path)
    lines = [[line for _, line in read_lines(row, side)] for side in (foreign, english)]
    numbers = [[number for number, _ in read_lines(row, side)] for side in (foreign, english)]
    if numbers[0] != numbers[1]:
        sizes = [
            f"{side.name} has {len(found):,} lines with text"
            for side, found in zip((foreign, english), lines, strict=True)
        ]
        raise UsageError(f"{foreign}: {' and '.join(sizes)}, which have to pair line by line; mend the longer one")
    for number, text_a, text_b in zip(numbers[0], *lines, strict=True):
        yield f"{foreign}:{number}", {"text_a": text_a, "text_b": text_b, "group": foreign.suffix.lstrip(".")}


def two_files(path: Path) -> tuple[Path, Path]:
    """Return the foreign and the English file; raises `UsageError` as `records` does."""
    if path.suffix not in ENGLISH:
        english = next((other for end in ENGLISH if (other := path.with_suffix(end)).is_file()), None)
        if english is None:
            raise UsageError(
                f"{path} has no {path.stem}.en or {path.stem}.eng beside it; expected the same lines in English"
            )
        return path, english
    others = [each for each in sorted(path.parent.iterdir()) if each.stem == path.stem and each.suffix not in ENGLISH]
    if len(others) != 1:
        found = ", ".join(each.name for each in others[:3]) or "none"
        raise UsageError(
            f"{path} needs one file of the same name in another language beside it, got {found}; name that one"
        )
    return others[0], path
