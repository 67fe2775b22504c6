"""Whether a vocab.txt numbers SentencePiece's pieces, as ERNIE-M's does: then it decides the ids, and not the model."""

from __future__ import annotations

import re
from pathlib import Path

from ground.files import check_plain

MARK = "▁"
ID = re.compile("[0-9]{1,7}")
_LOOKED_AT = 1 << 16


def lists_pieces(path: Path) -> bool:
    """Return whether a file is a vocabulary of SentencePiece's pieces with special tokens of its own.

    WordPiece's has no pieces, and SentencePiece's own .vocab has scores in its second column. Only the beginning of the
    file is looked at; a file that is not there is none.
    """
    if not path.is_file():
        return False
    with check_plain(path).open("rb") as stream:
        lines = stream.read(_LOOKED_AT).decode("utf-8", "ignore").split("\n")
    columns = [line.removesuffix("\r").split("\t") for line in lines]
    ids = [second for _, *further in columns for second in further]
    tokens = {token for token, *_ in columns}
    return (
        {"[CLS]", "[UNK]"} <= tokens
        and any(token.startswith(MARK) for token in tokens)
        and all(ID.fullmatch(each) for each in ids)
        and len({*ids}) == len(ids)
    )
