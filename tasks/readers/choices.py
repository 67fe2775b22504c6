"""Multiple choice, JSON lines: {"context", "question", "choices": [...], "answer"}, or choice0, choice1 as in COPA.

`answer` is the number of a choice, counted from 0, or its text, or its letter A, B, ...; what is one of the texts is a
text. This file also has what all readers of multiple choice yield: `record_of`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from data.corpus.compression import open_text
from data.corpus.encodings import find_encoding
from data.corpus.look import look
from ground.documents import MAX_BYTES, SURROGATE, check_shape, parse_json
from tasks.readers.lines import json_objects

if TYPE_CHECKING:
    from tasks.datasets import DatasetRow

Text = str | int | float
MOST_CHOICES = 64
_NUMBERED = re.compile(r"(?:choice|option|ending|answer|sol)_?(\d{1,2}|[A-H])")
_FIX = 'write {"context": ..., "question": ..., "choices": [...], "answer": ...}'


def records(row: DatasetRow, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every line's question; raises `UsageError` that names file and line for a malformed one."""
    for where, fields in json_objects(row, path):
        found: dict[str, Any] = {}
        for column, names in row.header_names.items():
            name = next((name for name in names if fields.get(name) is not None), None)
            if name is not None:
                found[column] = fields[name]
        if "choices" not in found:
            numbered = sorted((match[1], name) for name in fields if (match := _NUMBERED.fullmatch(name)))
            found["choices"] = [fields[name] for _, name in numbered]
        choices = [str(each) for each in check_shape(found["choices"], list[Text], where=f"{where}: choices", fix=_FIX)]
        for column in ("context", "question", "answer"):
            check_shape(found.get(column, ""), Text, where=f"{where}: {column}", fix=_FIX)
        context, question = str(found.get("context", "")), str(found.get("question", ""))
        yield where, record_of(where, context, question, choices, found.get("answer"))


def record_of(
    where: str, context: str, question: str, choices: Sequence[str], answer: Text | None, **further: Any
) -> dict[str, Any]:
    """Return one question as `tasks.kinds.choice` takes it; raises `UsageError` for one that cannot be asked.

    Args:
        where: file and line, for messages.
        context: what is read; "" where there is none.
        question: that is asked about it; "" where the choices go on with the context.
        choices: the texts to choose from.
        answer: what the file says of the right one, see `index_of`.
        further: `after`, the context behind a blank into which the choices fit; `name` of the question, `group` by
            which it is scored too, and `record`, a number that questions with the same choices share.
    """
    if not 2 <= len(choices) <= MOST_CHOICES:
        raise UsageError(f"{where}: {len(choices)} choices; expected 2 to {MOST_CHOICES}")
    for number, choice in enumerate(choices):
        if not choice.strip():
            raise UsageError(f"{where}: choice {number} is empty; leave it out where there are fewer choices")
    if not (context + question + further.get("after", "")).strip():
        raise UsageError(f"{where}: neither a context nor a question; {_FIX}")
    if half := SURROGATE.search("".join((context, question, *choices))):
        raise UsageError(f"{where}: a text has \\u{ord(half[0]):04x}, half of a character; write both halves")
    index = index_of(where, answer, choices)
    return {"context": context, "question": question, "choices": tuple(choices), "answer": index, **further}


def index_of(where: str, answer: Text | None, choices: Sequence[str]) -> int | None:
    """Return which choice an answer means, None for None; raises `UsageError` where it means none."""
    if answer is None or (isinstance(answer, str) and not answer.strip()):
        return None
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    text = str(answer).strip()
    number = (
        int(text) if re.fullmatch(r"\d{1,4}", text) else ord(text) - ord("A") if re.fullmatch("[A-Z]", text) else -1
    )
    if not 0 <= number < len(choices):
        shown = " ".join(", ".join(choices).split())
        raise UsageError(
            f"{where}: the answer {text[:40]!r} is none of the choices ({shown[:80]}), 0 to {len(choices) - 1}"
        )
    return number


def whole_json(row: DatasetRow, path: Path, shape: Any, what: str) -> Any:
    """Return the one JSON value of a file in the row's encoding; raises `UsageError` for a file of another shape."""
    encoding = find_encoding(row.encoding)
    if wrong := look(path, encoding):
        raise UsageError(f"{path} is not {encoding.upper()} text: {wrong}")
    with open_text(path, encoding) as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UsageError(f"{path} is larger than {MAX_BYTES >> 20} MiB; expected {what}")
    return parse_json(content, shape, where=str(path), what=what, fix="take the file as it is published")
