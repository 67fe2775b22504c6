"""How the text of an example is put together where a file holds only its parts: a small table, by name.

A row of datasets.toml with `template = "wsc"` reads the template's columns besides those of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Record = Mapping[str, str]


@dataclass(frozen=True)
class Template:
    """One way to put a text together.

    Attributes:
        columns: further columns that it reads, with what files call them.
        build: makes the kind's columns from a record; raises `ValueError` that says what is wrong with the record.
    """

    columns: Mapping[str, tuple[str, ...]]
    build: Callable[[Record], dict[str, str]]


def marked_spans(record: Record) -> dict[str, str]:
    """Return the text with underscores around the first span and brackets around the second (CLUEWSC's baselines).

    Example:
        text      "鱼吃了虫，它饱了", spans "鱼" at 0 and "它" at 5
        text_a    "_鱼_吃了虫，[它]饱了"
    """
    text, marks = record.get("text_a", ""), []
    for span, before, behind in (("span1", "_", "_"), ("span2", "[", "]")):
        words, index = record.get(span, ""), record.get(f"{span}_index", "")
        if not words or not index.isdigit():
            raise ValueError(f"{span} is missing; expected its text and where it begins")
        begin, end = int(index), int(index) + len(words)
        if text[begin:end] != words:
            raise ValueError(
                f"{span} {words!r} does not stand at character {begin} of the text, where {text[begin:end]!r} is"
            )
        marks += [(begin, 1, before), (end, 0, behind)]
    # From the end, so that places before stay what they are; where one span ends another may begin.
    for place, _, mark in sorted(marks, reverse=True):
        text = text[:place] + mark + text[place:]
    return {"text_a": text}


TEMPLATES: Mapping[str, Template] = {
    "wsc": Template(
        {
            "span1": ("target.span1_text", "span1_text"),
            "span1_index": ("target.span1_index", "span1_index"),
            "span2": ("target.span2_text", "span2_text"),
            "span2_index": ("target.span2_index", "span2_index"),
        },
        marked_spans,
    ),
}
