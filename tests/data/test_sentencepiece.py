"""SentencePiece: ids of the library itself in the published layouts, offsets into the text as it was given."""

from __future__ import annotations

import io
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import rjieba
import sentencepiece
from absl import app
from hypothesis import given
from hypothesis import strategies as st

from data.segmentation import word_starts
from data.tokenizers import load_tokenizer
from data.tokenizers.sentencepiece import MARK, SentencePieceTokenizer, prepare
from data.tokenizers.template import Template
from data.tokenizers.training import train_sentencepiece

SENTENCES = [
    *("In 1999, the naïve café served 2,000 guests; in 1999, “quotes” cost $5.", "He said (quietly): it is done."),
    *(
        "今天天气很好，我们去公园散步。",
        "图书馆里有很多书，大家都在读书。",
        "２０２３年，全角数字。",
        "The end of 1999, again.",
    ),
]
SAMPLES = Path(__file__).resolve().parents[2] / "data" / "samples"
TEXT = [
    *(f"In {year}, {sentence} By {year}, it ended." for year in range(1998, 2003) for sentence in SENTENCES),
    *(
        line
        for path in sorted((SAMPLES / "en").glob("*.txt"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ),
    *(SAMPLES / "zh" / "nature.txt").read_text(encoding="utf-8").splitlines()[:80],
]
# White space of all kinds, accents, ligatures, full width, marks alone, jamo, the mark itself, names of specials.
ODD = "aéÜﬁ½中国今天，。1,9 \t\n\u00a0\u3000\u0301①한ガ▁[]İΣ😀ａ"
texts = st.one_of(
    st.text(), st.text(ODD), st.text("今天天气很好，我们去公园 the1999,"), st.sampled_from([*SENTENCES, " [MASK]x<s> "])
)
MODELS = [("albert", "unigram", True), ("albert", "bpe", False), ("xlmr", "unigram", False), ("xlmr", "bpe", False)]


@pytest.fixture(scope="module", params=MODELS, ids=lambda p: "-".join(map(str, p)))
def tokenizer(request) -> SentencePieceTokenizer:
    layout, model_type, lower = request.param
    model = train_sentencepiece(
        TEXT, vocab_size=900, model_type=model_type, layout=layout, do_lower_case=lower, character_coverage=0.98
    )
    return SentencePieceTokenizer(model, do_lower_case=lower)


def library(tokenizer: SentencePieceTokenizer) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(tokenizer.model)
    return processor


def prepared(tokenizer: SentencePieceTokenizer, text: str) -> str:
    return prepare(text, do_lower_case=tokenizer.do_lower_case) if "[CLS]" in tokenizer.vocabulary else text


def pieces_of_library(tokenizer: SentencePieceTokenizer, text: str) -> list[str]:
    """The library's pieces, with ALBERT's rule that a comma leaves the number before it."""
    processor = library(tokenizer)
    pieces = []
    for piece in processor.encode(prepared(tokenizer, text), return_type=str):
        if "[CLS]" in tokenizer.vocabulary and piece[-1] == "," and piece[-2:-1].isdigit():
            number = processor.encode(piece[:-1].replace(MARK, ""), return_type=str)
            if piece[0] != MARK:
                number[0] = number[0].removeprefix(MARK)
            pieces += [p for p in number if p] + [","]
        else:
            pieces.append(piece)
    return pieces


@given(texts)
def test_pieces_are_those_of_the_library(tokenizer, text: str):
    expected = [p if p in tokenizer.vocabulary else "<unk>" for p in pieces_of_library(tokenizer, text)]
    assert tokenizer.tokens(tokenizer.encode(text)) == expected


def test_the_comma_rule_is_put_to_the_test(tokenizer):
    with_comma = [p for p in tokenizer.vocabulary if p[-1] == "," and p[-2:-1].isdigit()]
    emitted = set(tokenizer.tokens(tokenizer.encode(" ".join(SENTENCES))))
    if "[CLS]" in tokenizer.vocabulary:
        assert with_comma
        assert not emitted & set(with_comma)


@given(texts)
def test_offsets_spell_the_prepared_text(tokenizer, text: str):
    """Every character of the text lies in one token at most; what a token covers, prepared, is its piece."""
    encoding = tokenizer.encode_batch([text])
    covered = np.zeros(len(text), int)
    rows = zip(encoding.ids.tolist(), encoding.starts.tolist(), encoding.ends.tolist(), strict=True)
    for token_id, start, end in rows:
        assert 0 <= start <= end <= len(text)
        covered[start:end] += 1
        if start < end:
            assert not text[start].isspace()
        piece = tokenizer.tokens([token_id])[0].removeprefix(MARK)
        plain = unicodedata.is_normalized("NFKD", text) and text.isprintable() and not {"İ", MARK} & set(text)
        if token_id != tokenizer.unk_id and plain and not any(map(unicodedata.combining, text)):
            assert prepared(tokenizer, text[start:end]) == piece
    if unicodedata.is_normalized("NFKD", text):  # else one character makes several tokens
        assert covered.max(initial=0) <= 1
        letters = [i for i, c in enumerate(text) if c.isalpha()]
        assert all(covered[letters])


@given(st.lists(texts, max_size=6))
def test_texts_do_not_influence_one_another(tokenizer, batch: list[str]):
    together = tokenizer.encode_batch(batch)
    alone = [tokenizer.encode_batch([text]) for text in batch]
    assert together.splits.tolist() == np.cumsum([0, *(len(e.ids) for e in alone)]).tolist()
    for name in ("ids", "starts", "ends", "continuation"):
        expected = [getattr(e, name) for e in alone]
        assert getattr(together, name).tolist() == [x for e in expected for x in e.tolist()]
        assert all(getattr(together, name).dtype == e.dtype for e in expected)


@given(texts)
def test_raw_text_yields_no_special_id_but_unknown(tokenizer, text: str):
    ids = set(tokenizer.encode(text))
    assert not ids & (tokenizer.special_ids - {tokenizer.unk_id})
    assert ids <= {*tokenizer.replacement_ids.tolist(), tokenizer.unk_id}


def test_special_pieces_that_the_model_would_match_in_text_are_spelt():
    """Some published models carry [MASK] as a user-defined symbol, which the library finds in raw text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT + ["a [MASK] b"] * 20),
        model_writer=model,
        vocab_size=900,
        user_defined_symbols=["[MASK]"],
        control_symbols=["[PAD]", "[CLS]", "[SEP]"],
        minloglevel=2,
    )
    tokenizer = SentencePieceTokenizer(model.getvalue())
    assert tokenizer.mask_id in library(tokenizer).encode("the [MASK]", return_type=int)
    cased = SentencePieceTokenizer(model.getvalue(), do_lower_case=False)
    encoding = cased.encode_batch(["the [MASK] of"])
    assert cased.mask_id not in encoding.ids
    assert ["the [MASK] of"[a:b] for a, b in zip(encoding.starts, encoding.ends, strict=True) if a < b][1:-1]
    assert "".join("the [MASK] of"[a:b] for a, b in zip(encoding.starts, encoding.ends, strict=True)) == "the[MASK]of"


def test_layouts():
    albert = SentencePieceTokenizer(train_sentencepiece(TEXT, vocab_size=900))
    assert albert.vocabulary[:9] == ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", "(", ")", '"', "-")
    assert (albert.pad_id, albert.unk_id, albert.cls_id, albert.sep_id, albert.mask_id) == (0, 1, 2, 3, 4)
    assert albert.vocab_size == 900
    xlmr = SentencePieceTokenizer(train_sentencepiece(TEXT, vocab_size=900, layout="xlmr"))
    assert (xlmr.cls_id, xlmr.pad_id, xlmr.sep_id, xlmr.unk_id, xlmr.mask_id) == (0, 1, 2, 3, 899)
    assert albert.template == Template((2,), (3,), (3,))
    assert xlmr.template == Template((0,), (2, 2), (2,), segment_ids=(0, 0))
    assert [template.max_tokens(20, 2) for template in (albert.template, xlmr.template)] == [17, 16]
    own = library(xlmr)
    assert xlmr.vocabulary[4:-1] == tuple(own.id_to_piece(i) for i in range(3, own.get_piece_size()))
    assert xlmr.vocab_size == own.get_piece_size() + 2 == 900


@pytest.mark.parametrize("layout", ["albert", "xlmr"])
def test_training_and_files_round_trip(tmp_path: Path, layout: str):
    first = SentencePieceTokenizer(train_sentencepiece(TEXT, vocab_size=900, layout=layout))
    assert (
        first.fingerprint
        == SentencePieceTokenizer(train_sentencepiece(TEXT, vocab_size=900, layout=layout)).fingerprint
    )
    (path,) = first.save(tmp_path / "new")
    loaded = load_tokenizer(vocab_file="ignored", spm_model_file=path)
    assert (loaded.fingerprint, loaded.encode(TEXT[0])) == (first.fingerprint, first.encode(TEXT[0]))
    cased = load_tokenizer(spm_model_file=path, do_lower_case=False)
    assert (cased.fingerprint == first.fingerprint) == (layout == "xlmr")


def test_word_boundaries_for_english_and_chinese(tokenizer):
    text = "the café, 今天天气很好 naïve"
    encoding = tokenizer.encode_batch([text])
    begins = encoding.starts[word_starts([text], encoding)].tolist()
    words = ["".join(text[a:b].split()) for a, b in zip(begins, [*begins[1:], len(text)], strict=True)]
    assert words[:3] == ["the", "café", ","]
    assert words[-1] == "naïve"
    assert "".join(words) == "".join(text.split())
    boundaries = np.cumsum([0, *map(len, rjieba.cut(text))]).tolist()
    assert {b for b in begins if "今" < text[b] <= "龥"} <= set(boundaries)


def test_decode_reads_well(tokenizer):
    assert tokenizer.decode(tokenizer.encode("the end of ( it )")) == "the end of ( it )"


def test_usage_errors(tmp_path: Path):
    path = tmp_path / "x.model"
    path.write_bytes(b"no model")
    with pytest.raises(app.UsageError, match=r"x\.model: not a SentencePiece model"):
        load_tokenizer(spm_model_file=path)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_writer=model, vocab_size=900, bos_id=-1, eos_id=-1, minloglevel=2
    )
    path.write_bytes(model.getvalue())
    with pytest.raises(app.UsageError, match=r"begins with <unk>, .*; expected \[CLS\], \[SEP\], \[MASK\] among"):
        load_tokenizer(spm_model_file=path)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_writer=model, vocab_size=900, control_symbols=["[CLS]"], minloglevel=2
    )
    path.write_bytes(model.getvalue())
    with pytest.raises(app.UsageError, match=r"model lacks \[SEP\], \[MASK\], <pad>, which ALBERT's layout needs"):
        load_tokenizer(spm_model_file=path)


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        (TEXT, {"vocab_size": 5000}, r"--vocab_size=5000: the text of --input_file is enough for at most \d+ tokens"),
        ([], {}, "--input_file: the text holds no sentence to learn from"),
        ([" \t"], {}, "--input_file: the text holds no sentence to learn from"),
        (TEXT, {"vocab_size": 9}, r"--vocab_size=9: the characters of --input_file alone are \d+ tokens"),
    ],
)
@pytest.mark.parametrize("layout", ["albert", "xlmr"])
def test_text_that_is_no_vocabulary_is_refused_with_the_flag_to_change(texts, settings, message, layout):
    with pytest.raises(app.UsageError, match=message) as told:
        train_sentencepiece(texts, layout=layout, **settings)
    if texts is TEXT:
        # The number that is named is the one from which it works.
        size = int(re.findall(r"(\d+) tokens", str(told.value))[0])
        train_sentencepiece(TEXT, layout=layout, vocab_size=size)
        with pytest.raises(app.UsageError):
            train_sentencepiece(TEXT, layout=layout, vocab_size=size + (1 if settings["vocab_size"] > 9 else -1))
