"""Vocabulary files of a token a line, as BERT's; what would give text other ids than its author's is refused by line.

Read right, because the meaning is clear: line ends of Windows (CRLF) and of old Macs (CR alone), a byte-order mark,
blank lines at the end, and ERNIE's second column, which repeats the id. Lines end at LF and not at U+2028, which is a
token of Google's Chinese vocabulary.
"""

from __future__ import annotations

import re
from pathlib import Path

from absl.app import UsageError

from ground.files import check_plain
from ground.pieces import ID, MARK

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
UNUSED_TOKEN = re.compile(r"\[unused\d+\]")
MAX_TOKENS = 1 << 21
"""Eight times XLM-R's; the embeddings of a larger one are a mistake long before they are a model."""
MAX_BYTES = 1 << 26


def read_vocabulary(path: Path) -> list[str]:
    """Return the tokens of a file; the place of a token is its id.

    Raises:
        UsageError: the file is no such vocabulary, or a line of it is blank, a repetition or of several columns.
    """
    lines = _read_lines(path)
    tokens = [_token(path, number, line) for number, line in enumerate(lines)]
    _check_different(path, tokens)
    if tokens and all(token in SPECIAL_TOKENS or UNUSED_TOKEN.fullmatch(token) for token in tokens):
        raise UsageError(
            f"{path}: {len(tokens):,} special tokens and none of text; expected a vocabulary, such as "
            "train_tokenizer.py makes"
        )
    return tokens


def read_numbered_vocabulary(path: Path) -> list[str]:
    """Return the tokens of a file by id: the number behind a TAB, or where a line has none the place of the line.

    ERNIE-M's vocab.txt, whose tokens are SentencePiece's pieces.

    Raises:
        UsageError: the file is no such vocabulary, a token comes twice, or the ids are not 0, 1, 2 ...
    """
    numbered = [_numbered(path, number, line) for number, line in enumerate(_read_lines(path))]
    _check_different(path, [token for token, _ in numbered])
    tokens = [""] * len(numbered)
    first: dict[int, int] = {}
    for line, (token, number) in enumerate(numbered, start=1):
        if number >= len(tokens) or first.setdefault(number, line) != line:
            wrong = f"line {first[number]} has it too" if number in first else f"there are {len(tokens):,} tokens"
            raise UsageError(
                f"{path}, line {line}: the id {number:,} of {token!r:.60}, but {wrong}; expected every id from 0 once"
            )
        tokens[number] = token
    return tokens


def _numbered(path: Path, number: int, line: str) -> tuple[str, int]:
    """Return token and id of a line of a numbered vocabulary."""
    token, *further = line.split("\t")
    if len(further) > 1 or not all(ID.fullmatch(each) for each in further):
        raise UsageError(
            f"{path}, line {number + 1}: {line!r:.60}; expected a token, or a token, a TAB and its id, as in ERNIE-M's "
            "vocab.txt"
        )
    return token.strip(" "), int(further[0]) if further else number


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a vocabulary of a bearable size."""
    size = check_plain(path).stat().st_size
    if size > MAX_BYTES:
        raise UsageError(f"{path}: {size:,} bytes; expected a vocabulary, a token a line, of at most {MAX_BYTES:,}")
    lines = _lines(path, path.read_bytes())
    if len(lines) > MAX_TOKENS:
        raise UsageError(f"{path}: {len(lines):,} lines; expected a vocabulary of at most {MAX_TOKENS:,} tokens")
    return lines


def _check_different(path: Path, tokens: list[str]) -> None:
    """Raise `UsageError` for the first token that is blank or comes twice."""
    first: dict[str, int] = {}
    for number, token in enumerate(tokens, start=1):
        wrong = "" if token else "blank"
        if first.setdefault(token, number) != number:
            wrong = f"{token!r} is in line {first[token]} too"
        if wrong:
            raise UsageError(
                f"{path}, line {number}: {wrong}; expected a token in every line, and each once: write "
                f"[unused{len(tokens) + number}] there, so that the ids behind it stay"
            )


def _lines(path: Path, content: bytes) -> list[str]:
    """Return the lines of the file without their ends and without blank ones at the end."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        hint = "; is it a SentencePiece model? give it as --spm_model_file" if path.suffix == ".model" else ""
        raise UsageError(
            f"{path}: not UTF-8 at byte {error.start}; expected a vocabulary, one token a line{hint}"
        ) from None
    if "\0" in text:
        number = text[: text.index("\0")].count("\n") + 1
        raise UsageError(f"{path}, line {number}: a NUL character; expected a vocabulary in UTF-8, one token a line")
    if "\n" not in text:
        text = text.replace("\r", "\n")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _token(path: Path, number: int, line: str) -> str:
    """Return the token of a line; its id is `number`."""
    token, *further = line.split("\t")
    where = f"{path}, line {number + 1}"
    if further and (further != [str(number)] or MARK in token):
        raise UsageError(
            f"{where}: columns with a TAB between, {line!r:.60}; expected a token a line: if this is SentencePiece's "
            ".vocab, give the .model beside it as --spm_model_file"
        )
    if "\r" in token:
        raise UsageError(f"{where}: a carriage return inside of the token {token!r:.60}; expected lines that end alike")
    # As BERT strips them; not str.strip, which takes U+2028 for white space.
    return token.strip(" ")
