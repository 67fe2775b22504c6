"""WordPiece against a second implementation of BERT's published rules, and against transformers where it agrees."""

from __future__ import annotations

import re
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from absl import app
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tokenizers import Encoding, load_tokenizer
from data.tokenizers.wordpiece import WordPieceTokenizer, split_words

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [
    *SPECIAL,
    *[
        "[unused1]",
        "mask",
        "cls",
        "the",
        "un",
        "##believ",
        "##able",
        "a",
        "##a",
        "b",
        "##b",
        "ab",
        "##ab",
        "[",
        "]",
        "#",
    ],
    *["中", "国", "##国", "##，", "，", ",", ".", "2", "##0", "20", "##2", "e", "é", "##é", "i", "##i", "`", "'", "-"],
    *["α", "σ", "ς", "##σ", "##ς", "##α", "\u2028", "##\u2028", "\u1112", "##\u1161", "\uf900", "\u8c48"],
]
# Whatever BERT treats in a way of its own: accents, controls, separators, NUL, U+FFFD, sigma, jamo, marks, planes.
ODD = "aBbé中国\uf900，,.[]#2 0\t\n\r\0\x07\x0b\x85\u00a0\u00ad\u200b\u2028\u2029\u3000\ufeff\ufffd"
ODD += "ΑσςΣİ\u1fef\u0301\u302e\U0001d165한𠀀😀\ue000\u0378"
texts = st.one_of(st.text(), st.text(ODD), st.sampled_from(["[MASK]", "[CLS] 中国 [unused1]", "##a", "unbelievable"]))


@pytest.fixture(scope="module")
def uncased() -> WordPieceTokenizer:
    return WordPieceTokenizer(VOCABULARY)


@pytest.fixture(scope="module")
def cased() -> WordPieceTokenizer:
    return WordPieceTokenizer(VOCABULARY, do_lower_case=False)


def words_by_the_rules(text: str, lower: bool) -> list[str]:
    """BERT's basic tokenization as a chain of regular expressions and whole-string steps."""
    text = "".join(c for c in text if c in "\t\n\r" or not (c == "\ufffd" or unicodedata.category(c) in {"Cc", "Cf"}))
    text = "".join(" " if unicodedata.category(c) == "Zs" else c for c in text)
    ideographs = "[㐀-䶿一-鿿\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f]"
    text = re.sub(f"({ideographs})", r" \1 ", text)
    words = []
    for word in text.split():
        if lower:
            word = "".join(c for c in unicodedata.normalize("NFD", word.lower()) if unicodedata.category(c) != "Mn")
        words += "".join(f" {c} " if unicodedata.category(c)[0] == "P" or c in "$+<=>^`|~" else c for c in word).split()
    return words


def pieces_by_the_rules(word: str, vocabulary: list[str]) -> list[str]:
    if len(word) > 200:
        return ["[UNK]"]
    pieces, rest = [], word
    while rest:
        mark = "##" if pieces else ""
        fitting = [n for n in range(len(rest), 0, -1) if mark + rest[:n] in vocabulary]
        if not fitting:
            return ["[UNK]"]
        pieces.append(mark + rest[: fitting[0]])
        rest = rest[fitting[0] :]
    return pieces


def per_text(encoding: Encoding) -> list[list[tuple[int, int, int]]]:
    rows = list(zip(encoding.ids.tolist(), encoding.starts.tolist(), encoding.ends.tolist(), strict=True))
    return [rows[a:b] for a, b in zip(encoding.splits[:-1], encoding.splits[1:], strict=True)]


@settings(max_examples=400)
@given(texts, st.booleans())
def test_normative_path_follows_the_published_rules(uncased, cased, text: str, lower: bool):
    tokenizer = uncased if lower else cased
    words = words_by_the_rules(text, lower)
    assert [word for word, _ in split_words(text, do_lower_case=lower)] == words
    expected = [piece for word in words for piece in pieces_by_the_rules(word, VOCABULARY)]
    assert tokenizer.tokens([i for i, _, _ in tokenizer.encode_normatively(text)]) == expected


@settings(max_examples=400)
@given(st.lists(texts, max_size=5), st.booleans())
def test_fast_path_equals_normative_path(uncased, cased, batch: list[str], lower: bool):
    tokenizer = uncased if lower else cased
    encoding = tokenizer.encode_batch(batch)
    assert per_text(encoding) == [tokenizer.encode_normatively(text) for text in batch]
    assert encoding.continuation.tolist() == [t.startswith("##") for t in tokenizer.tokens(encoding.ids.tolist())]
    assert [len(encoding.splits), encoding.splits.dtype] == [len(batch) + 1, np.int64]
    assert {encoding.ids.dtype, encoding.starts.dtype, encoding.ends.dtype} == {np.dtype(np.int32)}


@settings(max_examples=300)
@given(texts, st.booleans())
def test_offsets_lie_in_order_and_spell_the_token(uncased, cased, text: str, lower: bool):
    tokenizer = uncased if lower else cased
    end_before = 0
    for token_id, start, end in tokenizer.encode_normatively(text):
        assert 0 <= start < end <= len(text)
        assert start >= end_before - 1  # two tokens may come from one character (decomposed syllables)
        end_before = end
        token = tokenizer.tokens([token_id])[0]
        if token_id != tokenizer.unk_id and text[start:end].isascii() and "\0" not in text[start:end]:
            shown = text[start:end].lower() if lower else text[start:end]
            assert "".join(c for c in shown if c.isprintable()) == token.removeprefix("##")


@given(texts)
def test_raw_text_yields_no_special_id_but_unknown(uncased, text: str):
    assert not set(uncased.encode(text)) & (uncased.special_ids - {uncased.unk_id})


@given(texts)
def test_only_replacement_ids_and_unknown_occur(uncased, text: str):
    assert set(uncased.encode(text)) <= {*uncased.replacement_ids.tolist(), uncased.unk_id}


def test_special_names_typed_in_text_are_ordinary_words(uncased):
    assert uncased.tokens(uncased.encode("[MASK] [CLS]")) == ["[", "mask", "]", "[", "cls", "]"]


def test_replacement_ids_leave_out_what_never_occurs(uncased):
    tokens = set(uncased.tokens(uncased.replacement_ids.tolist()))
    assert not tokens & {*SPECIAL, "[unused1]", "##国", "##，", "\u2028", "##\u2028", "é", "##é", "\uf900"}
    assert tokens >= {"中", "，", "mask", "##able", "##2"}
    cased = WordPieceTokenizer(VOCABULARY, do_lower_case=False)
    assert {"é", "\uf900"} <= set(cased.tokens(cased.replacement_ids.tolist()))


def test_every_code_point_alone_and_between_letters(uncased):
    """No character outside the sampled ones escapes: fast = normative on all of Unicode."""
    characters = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]
    interesting = [c for c in characters if c < "\u3400" or unicodedata.category(c) not in {"Lo", "Cn", "Co"}]
    batch = [f"a{c}b" for c in interesting]
    assert per_text(uncased.encode_batch(batch)) == [uncased.encode_normatively(text) for text in batch]


def test_long_words_are_unknown_above_200_characters(uncased):
    assert uncased.tokens(uncased.encode("a" * 200)) == ["a"] + ["##a"] * 199
    assert uncased.encode("a" * 201) == [uncased.unk_id]


def test_more_distinct_words_than_the_memo_holds(uncased, monkeypatch):
    monkeypatch.setattr("data.tokenizers.wordpiece._MEMO_WORDS", 3)
    tokenizer = WordPieceTokenizer(VOCABULARY)
    batch = ["a b ab ba aab abb 20 22 a b"] * 2
    assert per_text(tokenizer.encode_batch(batch)) == [uncased.encode_normatively(text) for text in batch]


@given(st.lists(st.text(ODD), min_size=1, max_size=8), st.integers(1, 20))
def test_division_into_blocks_does_not_show(uncased, batch: list[str], size: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.tokenizers.wordpiece._BLOCK_CHARACTERS", size)
        divided = uncased.encode_batch(batch)
    assert per_text(divided) == [uncased.encode_normatively(text) for text in batch]
    assert divided.continuation.tolist() == uncased.encode_batch(batch).continuation.tolist()


def test_vocabulary_survives_save_and_load(uncased, tmp_path: Path):
    (path,) = uncased.save(tmp_path / "new")
    loaded = load_tokenizer(vocab_file=path)
    assert isinstance(loaded, WordPieceTokenizer)
    assert loaded.vocabulary == uncased.vocabulary  # U+2028 is a token of it, not a line end
    assert loaded.fingerprint == uncased.fingerprint
    assert [p.name for p in path.parent.iterdir()] == ["vocab.txt"]


def test_vocabulary_files_of_others(tmp_path: Path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("".join(f"{token}\t{i}\r\n" for i, token in enumerate(VOCABULARY)).encode())
    assert load_tokenizer(vocab_file=path).encode("中国") == [VOCABULARY.index("中"), VOCABULARY.index("国")]


def test_fingerprint_tells_vocabulary_and_casing_apart(uncased, cased):
    swapped = WordPieceTokenizer([*VOCABULARY[:-2], VOCABULARY[-1], VOCABULARY[-2]])
    assert len({uncased.fingerprint, cased.fingerprint, swapped.fingerprint}) == 3


def test_decode_joins_pieces_and_spaces_latin_words_only(uncased):
    assert uncased.decode(uncased.encode("the unbelievable 中国，the 20")) == "the unbelievable中国，the 20"


def test_usage_errors(tmp_path: Path):
    with pytest.raises(app.UsageError, match=r"no tokenizer: give --vocab_file \(WordPiece\) or --spm_model_file"):
        load_tokenizer()
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n的\n", encoding="utf-8")
    with pytest.raises(
        app.UsageError, match=r"vocab\.txt: the vocabulary of 4 tokens lacks \[SEP\], \[MASK\]; expected"
    ):
        load_tokenizer(vocab_file=path)
    path.write_bytes(b"[PAD]\n\xff\n")
    with pytest.raises(app.UsageError, match=r"vocab\.txt: not UTF-8 at byte 6; expected a vocabulary"):
        load_tokenizer(vocab_file=path)
    with pytest.raises(FileNotFoundError):
        load_tokenizer(vocab_file=tmp_path / "absent.txt")


@pytest.mark.parametrize("lower", [True, False])
def test_equal_to_transformers_on_ordinary_text(tmp_path: Path, lower: bool):
    """transformers drops private-use and unassigned characters, looks up words to 100 characters and keeps '[MASK]'."""
    transformers = pytest.importorskip("transformers")
    vocabulary = list(
        dict.fromkeys([*VOCABULARY, *map(chr, range(33, 0x250)), *(f"##{c}" for c in "abcdefghijklmnop")])
    )
    (path,) = WordPieceTokenizer(vocabulary).save(tmp_path)
    ours = load_tokenizer(vocab_file=path, do_lower_case=lower)
    theirs = transformers.BertTokenizer(str(path), do_lower_case=lower)
    samples = [
        "Hello, the unbelievable 中国！2023年，GDP增长5.2%。",
        "Ünïcödé naïve façade — “quotes” … 「引」 ｆｕｌｌ\u3000width",
        "tab\there\u00a0nbsp zero\u200bwidth line\nfeed 한국 ΑΒΓ привет",
        "C++ c# f(x)=y^2 $5 a_b ~tilde~ back`tick",
    ]
    for sample in samples:
        assert ours.encode(sample) == theirs.encode(sample, add_special_tokens=False), sample


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["a", "##b"], "ab"),
        (["un", "##believ", "##able", "b"], "unbelievable b"),
        (["a", "##b", "##a", "中", "国", "a"], "aba中国a"),
        (["#", "a"], "# a"),
    ],
)
def test_decoding_joins_pieces_of_any_length(uncased, tokens, text):
    assert uncased.decode([uncased.vocabulary.index(token) for token in tokens]) == text
