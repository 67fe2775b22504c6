"""What a trained model is asked, a line each: a text, texts with TABs between, or JSON; from a file or from stdin."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl.app import UsageError

FORMATS = ("auto", "lines", "tsv", "jsonl")
FORMATS_HELP = (
    "what a line is: a text, texts with TABs between, or JSON as {question, context}; auto goes by the name's end "
    "(.tsv, .jsonl), on standard input by the first line"
)
Given = tuple[int, str, Any]
"""The number of a line from 0, its place in words, and what is given there."""


def asked_lines(path: str | None, form: str) -> Iterator[Given]:
    """Yield the inputs of a file, or for None and "-" of standard input; empty lines are passed over.

    Raises:
        UsageError: a line is no UTF-8, or no JSON where it has to be; its place is named.
        OSError: the file cannot be read.
    """
    if path in (None, "-"):
        yield from _of_lines(sys.stdin.buffer, "standard input", form, "")
        return
    from ground.files import check_plain

    with check_plain(Path(path)).open("rb") as stream:
        yield from _of_lines(stream, path, form, Path(path).suffix)


def _of_lines(lines: Iterable[bytes], name: str, form: str, suffix: str) -> Iterator[Given]:
    by_suffix = {".tsv": "tsv", ".jsonl": "jsonl", ".json": "jsonl"}
    if form == "auto" and suffix:
        form = by_suffix.get(suffix, "lines")
    for number, line in enumerate(lines):
        place = f"{name}:{number + 1}"
        try:
            text = line.decode("utf-8-sig" if number == 0 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UsageError(f"{place}: byte {error.start:,} is no UTF-8; write the file in UTF-8") from None
        if not text.strip():
            continue
        if form == "auto":
            form = "jsonl" if text.lstrip().startswith("{") else "tsv" if "\t" in text else "lines"
        yield number, place, _read(text, form, place)


def _read(text: str, form: str, place: str) -> Any:
    if form == "jsonl":
        from ground.documents import parse_json

        value = parse_json(text, where=place, what="a line of JSON", fix='give an object a line, as {"text": ...}')
        return tuple(value) if isinstance(value, list) else value
    texts: Sequence[str] = text.split("\t") if form == "tsv" else [text]
    return texts[0] if len(texts) == 1 else tuple(texts)


def at(place: str, function: Callable[[Any], Any], value: Any) -> Any:
    """Return function(value), with the place in front of what is wrong with it."""
    try:
        return function(value)
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from None
