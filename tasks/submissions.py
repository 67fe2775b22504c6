"""What is handed in to leaderboards: forms of files, and the checks before one is written.

    submission = { form = "index_tsv", files = { test = ["MRPC.tsv"] } }

A row of datasets.toml names a form of FORMS, and for each split the files that it becomes below OUTPUT_DIR/submission.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ground.files import write_atomically

if TYPE_CHECKING:
    from tasks.datasets import DatasetRow

FOLDER = "submission"
GROUP = "{group}"
"""Stands in a name for the group of examples that a file is of, such as a language."""
# As JSON writes it: 007 is a name.
_NUMBER = re.compile("0|[1-9][0-9]{0,17}")
Answers = Sequence[tuple[Any, Any]]
"""For every row of the test file its id and the answer."""


def index_tsv(answers: Answers) -> Iterator[str]:
    """Yield GLUE's lines: a header, then the number of the row and the label."""
    yield "index\tprediction"
    yield from (f"{index}\t{answer}" for index, answer in answers)


def json_lines(answers: Answers) -> Iterator[str]:
    """Yield CLUE's and FewCLUE's lines: one object a row."""
    yield from (json.dumps({"id": each, "label": answer}, ensure_ascii=False) for each, answer in answers)


def json_records(answers: Answers) -> Iterator[str]:
    """Yield CLUENER's lines: one object a row, of the id and what the answer has by name."""
    yield from (json.dumps({"id": each, **answer}, ensure_ascii=False) for each, answer in answers)


def json_object(answers: Answers) -> Iterator[str]:
    """Yield one object of all answers by id, as question answering is handed in."""
    yield json.dumps({str(each): answer for each, answer in answers}, ensure_ascii=False)


def plain_lines(answers: Answers) -> Iterator[str]:
    """Yield XTREME's lines: the answer alone."""
    yield from (str(answer) for _, answer in answers)


def tag_lines(answers: Answers) -> Iterator[str]:
    """Yield XTREME's lines of tagged words: the tag of every word, and an empty line behind each text."""
    for _, tags in answers:
        yield from tags
        yield ""


def pair_tsv(answers: Answers) -> Iterator[str]:
    """Yield BUCC's lines: the ids of two sentences that belong together."""
    yield from ("\t".join(pair) for _, pair in answers)


FORMS: Mapping[str, Callable[[Answers], Iterator[str]]] = {
    "index_tsv": index_tsv,
    "json_lines": json_lines,
    "json_records": json_records,
    "json_object": json_object,
    "plain_lines": plain_lines,
    "tag_lines": tag_lines,
    "pair_tsv": pair_tsv,
}


def write_submission(
    row: DatasetRow, split: str, answers: Sequence[tuple[str | None, Any]], folder: Path, *, group: str = ""
) -> list[str]:
    """Write the files of one split, if the row hands it in; return what there is to say of them, a line each.

    Args:
        row: whose `submission` says form and names.
        split: of `row.files`.
        answers: for every row of the file, in order, the id that it has there and the answer as it is released.
        folder: below which the files are written.
        group: takes the place of GROUP in names.

    Raises:
        OSError: a file cannot be written.
    """
    names = [name.replace(GROUP, group) for name in row.submission.get("files", {}).get(split, ())]
    if not names:
        return []
    try:
        keyed = checked(row, answers)
    except ValueError as error:
        # What was predicted is worth more than what is handed in; a former file would be taken for this one.
        for name in names:
            (folder / name).unlink(missing_ok=True)
        return [f"no submission {', '.join(names)}: {error}"]
    content = "".join(f"{line}\n" for line in FORMS[row.submission["form"]](keyed))
    said = []
    for name in names:
        write_atomically(folder / name, content)
        said.append(f"submission of {len(keyed):,} rows  {folder / name}")
    expected = row.counts.get(split)
    if expected and expected != len(keyed):
        said.append(f"{names[0]} has {len(keyed):,} rows, the leaderboard's test {expected:,}: it will be refused")
    return said


def checked(row: DatasetRow, answers: Sequence[tuple[str | None, Any]]) -> Answers:
    """Return the answers with the ids that are handed in.

    Raises:
        ValueError: a row lacks its id or two have the same, or an answer is none of the row's labels.
    """
    by_key, seen, found = row.submission.get("id") == "key", set(), []
    for number, (given, answer) in enumerate(answers):
        if row.labels and isinstance(answer, str) and answer not in row.labels:
            raise ValueError(f"row {number} has {answer!r}, which is none of the labels of {row.name}")
        if by_key and (given is None or given in seen):
            wrong = "lacks its id" if given is None else f"has the id {given} of another row"
            raise ValueError(f"row {number} of the test file {wrong}; predict the released file")
        seen.add(given)
        key: Any = number if not by_key else int(given) if given and _NUMBER.fullmatch(given) else given
        found.append((key, answer))
    return found
