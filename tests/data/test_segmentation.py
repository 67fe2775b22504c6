"""Whole-word boundaries: the segmenter's words for ideographs, the tokenizer's for the rest, per text."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from absl import app
from hypothesis import given
from hypothesis import strategies as st

from data import segmentation
from data.segmentation import segmenter_version, word_starts
from data.tokenizers import Encoding
from data.tokenizers.wordpiece import WordPieceTokenizer, is_ideograph, is_punctuation

rjieba = pytest.importorskip("rjieba")
SENTENCES = "他来到了网易杭研大厦。中华人民共和国成立了！一心一意，卡拉OK很好听。我用iPhone拍c#代码2023年"
TOKENIZER = WordPieceTokenizer(
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz0123456789#"]
    + [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"]
    + sorted({c for c in SENTENCES if not c.isascii()} - {"网"})
)
mixed = st.text(st.sampled_from(SENTENCES + "网龘 \u3000\u200b,，ab。é"), max_size=40)


def words(text: str, segmenter: str = "rjieba") -> list[str]:
    """The text cut at the tokens that begin a word, white space removed."""
    encoding = TOKENIZER.encode_batch([text])
    begins = encoding.starts[word_starts([text], encoding, segmenter=segmenter)].tolist()
    return ["".join(text[a:b].split()) for a, b in zip(begins, [*begins[1:], len(text)], strict=True)]


@pytest.mark.parametrize("segmenter", ["rjieba", "jieba"])
def test_words_of_any_length_stay_whole(segmenter: str):
    assert words("中华人民共和国成立了！", segmenter) == ["中华人民共和国", "成立", "了", "！"]
    assert words("一心一意，他来到了网易杭研大厦", segmenter)[:2] == ["一心一意", "，"]


def test_a_word_keeps_characters_that_the_vocabulary_lacks():
    assert words("网易很好听") == ["网易", "很", "好听"]


def test_without_a_segmenter_each_ideograph_is_a_word():
    assert words("中华 iPhone拍", "none") == ["中", "华", "iPhone", "拍"]


def test_latin_words_follow_the_tokenizer_even_where_the_segmenter_glues(monkeypatch):
    monkeypatch.setattr(segmentation, "_cutter", lambda name: lambda text: ["卡拉OK很", "好听", "c#代码"])
    assert words("卡拉OK很好听c#代码") == ["卡拉", "OK", "很", "好听", "c", "#", "代码"]


@given(mixed)
def test_ideographs_begin_words_where_the_segmenter_says_or_after_something_else(text: str):
    encoding = TOKENIZER.encode_batch([text])
    starts = word_starts([text], encoding)
    offsets = {sum(map(len, rjieba.cut(text)[:n])) for n in range(len(text) + 1)}
    before = 0
    for begins, start, end, continuation in zip(
        starts.tolist(), encoding.starts.tolist(), encoding.ends.tolist(), encoding.continuation.tolist(), strict=True
    ):
        if is_ideograph(text[start]):
            after_ideograph = before > 0 and is_ideograph(text[before - 1])
            assert begins == (start in offsets or not after_ideograph)
        else:
            assert begins == (is_punctuation(text[start]) or not continuation)
        before = end


@given(st.lists(mixed, max_size=5))
def test_texts_do_not_influence_one_another(batch: list[str]):
    together = word_starts(batch, TOKENIZER.encode_batch(batch))
    alone = [word_starts([text], TOKENIZER.encode_batch([text])) for text in batch]
    assert together.tolist() == np.concatenate([np.zeros(0, bool), *alone]).tolist()
    assert together.dtype == bool


def test_a_lone_sentencepiece_mark_joins_the_token_after_it():
    # "▁" (nothing of the text), "中国", "▁", "ab", "c", "," as a SentencePiece model cuts "中国 abc,"
    encoding = Encoding(
        ids=np.zeros(6, np.int32),
        splits=np.array([0, 6]),
        starts=np.array([0, 0, 3, 3, 5, 6], np.int32),
        ends=np.array([0, 2, 3, 5, 6, 7], np.int32),
        continuation=np.array([False, True, False, True, True, True]),
    )
    assert word_starts(["中国 abc,"], encoding).tolist() == [True, False, True, False, False, True]


def test_jieba_leaves_no_cache_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    segmentation._cutter.cache_clear()
    assert words("中华人民共和国", "jieba") == ["中华人民共和国"]
    assert list(tmp_path.iterdir()) == []


def test_versions_and_usage_errors(monkeypatch):
    assert segmenter_version("rjieba").startswith("rjieba 0.")
    assert segmenter_version("none") == "none"
    with pytest.raises(app.UsageError, match="segmenter 'thulac' is not known; choose one of rjieba, jieba, none"):
        word_starts([], TOKENIZER.encode_batch([]), segmenter="thulac")
    segmentation._cutter.cache_clear()
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(app.UsageError, match="segmenter 'jieba' is not installed; pip install jieba"):
        words("中国", "jieba")
