"""Vocabulary files: what has one meaning is read, all else is refused by line."""

from __future__ import annotations

from pathlib import Path

import pytest
from absl.app import UsageError

from data.tokenizers import load_tokenizer, vocabulary
from data.tokenizers.vocabulary import SPECIAL_TOKENS, read_vocabulary

TOKENS = [*SPECIAL_TOKENS, "的", "##的", "\u2028", "a", "##b"]
LINES = "\n".join(TOKENS)


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        LINES,
        LINES + "\n",
        LINES + "\n\n\r\n",
        LINES.replace("\n", "\r\n"),
        LINES.replace("\n", "\r"),
        "\ufeff" + LINES,
        LINES.replace("a", " a "),
        "".join(f"{token}\t{i}\n" for i, token in enumerate(TOKENS)),
    ],
    ids=["bare", "ended", "blank lines at the end", "CRLF", "CR", "byte-order mark", "spaces", "ERNIE"],
)
def test_what_has_one_meaning_is_read(tmp_path: Path, text: str):
    assert read_vocabulary(write(tmp_path / "vocab.txt", text)) == TOKENS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LINES + "\n的\nb", r"line 11: '的' is in line 6 too; .* write \[unused23\] there"),
        (LINES.replace("##的", ""), r"line 7: blank; .* write \[unused17\] there"),
        (LINES.replace("##的", "  "), "line 7: blank"),
        (LINES.replace("##的", "的\r的"), "line 7: a carriage return inside"),
        (LINES.replace("##的", "的\t-3.5"), "line 7: columns with a TAB .* --spm_model_file"),
        ("<unk>\t0\n<s>\t0\n", "line 2: columns with a TAB"),
        ("▁a\t0\n", "line 1: columns with a TAB"),
        (LINES.replace("##的", "a\0b"), "line 7: a NUL character"),
        ("\n".join([*SPECIAL_TOKENS, "[unused1]"]), "6 special tokens and none of text"),
        (LINES.replace("[SEP]", "[SEPP]"), r"lacks \[SEP\]"),
        ("", r"lacks \[PAD\]"),
        ("\n" * 9, r"lacks \[PAD\]"),
    ],
)
def test_what_has_none_is_refused_by_line(tmp_path: Path, text: str, message: str):
    path = write(tmp_path / "vocab.txt", text)
    with pytest.raises(UsageError, match=rf"vocab\.txt.*{message}") as caught:
        load_tokenizer(vocab_file=path)
    assert "\n" not in str(caught.value)


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "vocab.txt", LINES)
    monkeypatch.setattr(vocabulary, "MAX_TOKENS", len(TOKENS) - 1)
    with pytest.raises(UsageError, match=r"10 lines; expected a vocabulary of at most 9 tokens"):
        read_vocabulary(path)
    monkeypatch.setattr(vocabulary, "MAX_BYTES", 20)
    with pytest.raises(UsageError, match=r"\d+ bytes; expected a vocabulary"):
        read_vocabulary(path)


def test_a_model_given_as_a_vocabulary_names_its_flag(tmp_path: Path):
    path = tmp_path / "spiece.model"
    path.write_bytes(b"\x0a\xff\xfe")
    with pytest.raises(UsageError, match="--spm_model_file"):
        read_vocabulary(path)


def test_text_is_lower_cased_unless_told_otherwise(tmp_path: Path):
    path = write(tmp_path / "vocab.txt", LINES)
    a, unknown = TOKENS.index("a"), TOKENS.index("[UNK]")
    assert load_tokenizer(vocab_file=path).encode("A a") == [a, a]
    assert load_tokenizer(vocab_file=path, do_lower_case=False).encode("A a") == [unknown, a]
