"""Texts with marked entities, a JSON object a line, as CLUENER2020 has them (Xu et al. 2020).

    {"text": "李雷任校长", "label": {"name": {"李雷": [[0, 1]]}, "position": {"校长": [[3, 4]]}}}

The second number of a pair is the last character of the entity, not the one behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from absl.app import UsageError

from ground.documents import check_shape, json_line
from tasks.readers.lines import read_lines

if TYPE_CHECKING:
    from tasks.datasets import DatasetRow

_FIX = 'expected {"text": "...", "label": {TYPE: {ENTITY: [[first, last]]}}}'
_BEGINNINGS = {"{", "[", "[{"}


class _Shape(TypedDict):
    text: str
    label: NotRequired[dict[str, dict[str, list[list[int]]]]]


def records(row: DatasetRow, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of every text with `text_a` and `label`: sorted (type, first character, the one behind the last).

    Raises:
        UsageError: a line is no such object, the file is one object over many lines, or an entity is not where the
            numbers say; file and line are named.
    """
    for number, line in read_lines(row, path):
        where = f"{path}:{number}"
        if number == 1 and line.strip() in _BEGINNINGS:
            raise UsageError(
                f"{where}: JSON over many lines; expected an object a line: write it anew, as with `jq -c . FILE`"
            )
        try:
            value = json_line(line)
        except ValueError as error:
            raise UsageError(f"{where}: not a JSON object ({error}); {_FIX}, on one line") from None
        check_shape(value, _Shape, where=where, fix=_FIX)
        text, found = value["text"], []
        for kind, entities in value.get("label", {}).items():
            for entity, places in entities.items():
                found += [(kind, *_checked(where, text, entity, place)) for place in places]
        marks = sorted(set(found), key=lambda mark: (mark[1], mark[2], mark[0]))
        yield where, {"text_a": text, "label": marks if "label" in value else None}


def _checked(where: str, text: str, entity: str, place: list[int]) -> tuple[int, int]:
    if len(place) != 2 or not 0 <= place[0] <= place[1] < len(text) or text[place[0] : place[1] + 1] != entity:
        shown = repr(text[place[0] : place[1] + 1]) if len(place) == 2 and place[0] >= 0 else "nothing"
        raise UsageError(
            f"{where}: {entity!r} is not at {place}, where {shown} is; expected its first and its last character, "
            "counted from 0"
        )
    return place[0], place[1] + 1
