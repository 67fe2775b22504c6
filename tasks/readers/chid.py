"""ChID (Zheng et al. 2019), CLUE's and FewCLUE's form: JSON lines of passages with blanks #idiom000378# and candidates.

Every blank is a question. CLUE's answers are an object {"#idiom000378#": 0} in NAME_answer.json beside NAME.json;
FewCLUE's one blank a line has its `answer` in the line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from absl.app import UsageError

from ground.documents import check_shape
from tasks.readers.choices import record_of, whole_json
from tasks.readers.lines import json_objects

if TYPE_CHECKING:
    from tasks.datasets import DatasetRow

BLANK = re.compile(r"#idiom\d*#")
OTHER_BLANK = "＿"
"""What stands for the other blanks of a passage."""


class _Line(TypedDict):
    content: str | list[str]
    candidates: list[str]
    answer: NotRequired[int]


def records(row: DatasetRow, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every blank with the text before and after it; blanks of one line, and `record`, share candidates."""
    beside = path.with_name(f"{path.stem}_answer{path.suffix}")
    answers: Mapping[str, int] | None = None
    if beside.is_file():
        answers = whole_json(row, beside, dict[str, int], 'ChID\'s answers, {"#idiom000378#": 0, ...}')
    for number, (where, fields) in enumerate(json_objects(row, path)):
        check_shape(fields, _Line, where=where, fix='write {"content": [...], "candidates": [...]}')
        passages = fields["content"] if isinstance(fields["content"], list) else [fields["content"]]
        found = 0
        for passage in passages:
            for match in BLANK.finditer(passage):
                found += 1
                answer = fields.get("answer") if answers is None else answers.get(match[0])
                if answer is not None and not 0 <= answer < len(fields["candidates"]):
                    last = len(fields["candidates"]) - 1
                    raise UsageError(
                        f"{where}: the answer {answer} of {match[0]} is none of the candidates 0 to {last}"
                    )
                before, after = (
                    BLANK.sub(OTHER_BLANK, part) for part in (passage[: match.start()], passage[match.end() :])
                )
                further = {"after": after, "name": match[0], "record": number}
                yield where, record_of(where, before, "", fields["candidates"], answer, **further)
        if not found:
            raise UsageError(f"{where}: no blank as #idiom000378# in the content; expected one at least")
