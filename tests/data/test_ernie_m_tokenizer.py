"""ERNIE-M's tokenizer: each published rule derived anew from the library's pieces, ids from the vocabulary's order."""

from __future__ import annotations

import functools
import itertools
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from absl import app
from hypothesis import given
from hypothesis import strategies as st

import create_pretraining_data
import inspect_records
from commands.flags import parse
from commands.options import SEGMENTATIONS as NAMES
from data.segmentation import word_starts
from data.tokenizers import Tokenizer, load_tokenizer
from data.tokenizers.ernie_m import SEGMENTATIONS, ErnieMTokenizer
from data.tokenizers.sentencepiece import MARK
from data.tokenizers.template import Template
from data.tokenizers.training import train_sentencepiece
from data.tokenizers.vocabulary import read_numbered_vocabulary
from ground.pieces import lists_pieces

SAMPLES = Path(__file__).resolve().parents[2] / "data" / "samples"
SENTENCES = [
    *("In 1999, the naïve café served 2,000 guests; in 1999, “quotes” cost $5.", "他说：“今天是2023年。”"),
    *("今天 天气很好，我们去 公园散步！", "図書館 in 2,024, ok?", "a ~ b 《书》 【c】 3rd", "x —y\u200b z\u00a01"),
]
TEXT = [
    *SENTENCES * 8,
    *(f"In {year}, it ended; by {year}, ok." for year in range(1990, 2010)),
    *(SAMPLES / "en" / "nature.txt").read_text(encoding="utf-8").splitlines()[:60],
    *(SAMPLES / "zh" / "nature.txt").read_text(encoding="utf-8").splitlines()[:60],
]
ODD = "aé½中国今，。1,9²\t\n\u00a0\u3000\u200b①한▁[]“—～～龘😀ａ５ "
texts = st.one_of(
    st.text(), st.text(ODD), st.text("今天天气很好 the1999, “”"), st.sampled_from([*SENTENCES, " [MASK]x[CLS] "])
)
ALONE = ",;:.?!~，；：。？！《》【】"
SPECIALS = ["[CLS]", "[PAD]", "[SEP]", "[UNK]"]


@pytest.fixture(scope="module")
def model() -> bytes:
    return train_sentencepiece(TEXT, vocab_size=800, layout="xlmr", character_coverage=0.99)


@pytest.fixture(scope="module")
def vocabulary(model: bytes) -> list[str]:
    """ERNIE-M's order of specials, and the pieces in another order than the model's."""
    pieces = [library(model).id_to_piece(i) for i in range(3, 798)]
    return [*SPECIALS, *np.random.default_rng(0).permutation(pieces).tolist(), "年", "[MASK]"]


@pytest.fixture(scope="module", params=SEGMENTATIONS)
def tokenizer(request, model: bytes, vocabulary: list[str]) -> ErnieMTokenizer:
    return ErnieMTokenizer(model, [*dict.fromkeys(vocabulary)], request.param)


@functools.cache
def library(model: bytes) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    return processor


def cut_by_hand(piece: str) -> list[str]:
    """Specification 2.5: a border beside every ideograph and mark, and between digits and others; no '▁' alone."""
    parts = [piece[:1]]
    for before, after in itertools.pairwise(piece):
        apart = any("\u4e00" <= c <= "\u9fff" or c in ALONE for c in (before, after))
        if apart or before.isdigit() != after.isdigit():
            parts.append("")
        parts[-1] += after
    return [part for part in parts if part != MARK]


def tokens_by_hand(tokenizer: ErnieMTokenizer, text: str) -> list[str]:
    """The three rules on the library's pieces, one text at a time."""
    processor = library(tokenizer.model)
    if tokenizer.segmentation == "ernie_repo":
        for smart, plain in (("“", '"'), ("”", '"'), ("‘", "'"), ("’", "'"), ("—", "-")):
            text = text.replace(smart, plain)
        kept = [c for c in text if c in "\t\n\r" or unicodedata.category(c) not in ("Cc", "Cf")]
        text = "".join(" " if c in "\t\n\r" or unicodedata.category(c) == "Zs" else c for c in kept)
        found = []
        for piece in processor.encode(text, return_type=str):
            if len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit():
                parts = processor.encode(piece[:-1].replace(MARK, ""), return_type=str)
                if piece[0] != MARK:
                    parts[0] = parts[0][1:]
                found += [part for part in parts if part] + [","]
            else:
                found.append(piece)
        return found
    found, pieces = [], processor.encode(text, return_type=str)
    for place, piece in enumerate(pieces):
        if piece == MARK:
            following = pieces[place + 1 : place + 2]
            if tokenizer.segmentation == "hf" and place and following and following[0][0] != MARK:
                found.append(MARK)
        else:
            found += cut_by_hand(piece)
    return found


@given(texts)
def test_tokens_are_those_of_the_rule_and_ids_those_of_the_vocabulary(tokenizer, text: str):
    known = {token: i for i, token in enumerate(tokenizer.vocabulary) if token not in (*SPECIALS, "[MASK]")}
    assert tokenizer.encode(text) == [known.get(token, 3) for token in tokens_by_hand(tokenizer, text)]


def test_the_rules_are_put_to_the_test(model: bytes, vocabulary: list[str]):
    vocabulary = [*dict.fromkeys(vocabulary)]
    by_name = {name: ErnieMTokenizer(model, vocabulary, name) for name in SEGMENTATIONS}
    cut = {
        name: [token for text in SENTENCES for token in each.tokens(each.encode(text))]
        for name, each in by_name.items()
    }
    assert len({json.dumps(each) for each in cut.values()}) == 3
    assert len({each.fingerprint for each in by_name.values()}) == 3
    assert MARK not in cut["paddlenlp"]
    assert MARK in cut["hf"]
    assert any(len(token) > 1 and "\u4e00" <= token[-1] <= "\u9fff" for token in cut["ernie_repo"])
    assert any(p[-1] == "," and p[-2:-1].isdigit() for p in vocabulary), "no piece for the comma's rule"
    assert not any(p[-1] == "," and p[-2:-1].isdigit() for p in cut["ernie_repo"])


@given(texts)
def test_no_character_is_lost_but_those_that_a_rule_drops(tokenizer, text: str):
    """Every character but white space, controls and what the model's own normalisation drops lies in one token."""
    encoding = tokenizer.encode_batch([text])
    covered = np.zeros(len(text) + 1, int)
    for start, end in zip(encoding.starts.tolist(), encoding.ends.tolist(), strict=True):
        assert 0 <= start <= end <= len(text)
        covered[start:end] += 1
    if unicodedata.is_normalized("NFKC", text):
        assert covered.max(initial=0) <= 1
        assert all(covered[i] for i, c in enumerate(text) if c.isalnum())
    spelt = library(tokenizer.model)
    whole = "".join(spelt.encode(text, return_type=str)).replace(MARK, "")
    if tokenizer.segmentation != "ernie_repo":
        assert "".join(tokens_by_hand(tokenizer, text)).replace(MARK, "") == whole


@given(st.lists(texts, max_size=6))
def test_texts_do_not_influence_one_another(tokenizer, batch: list[str]):
    together = tokenizer.encode_batch(batch)
    alone = [tokenizer.encode_batch([text]) for text in batch]
    assert together.splits.tolist() == np.cumsum([0, *(len(e.ids) for e in alone)]).tolist()
    for name in ("ids", "starts", "ends", "continuation"):
        assert getattr(together, name).tolist() == [x for e in alone for x in getattr(e, name).tolist()]
        assert all(getattr(together, name).dtype == getattr(e, name).dtype for e in alone)


@given(texts)
def test_raw_text_yields_no_special_id_but_unknown(tokenizer, text: str):
    ids = set(tokenizer.encode(text)) - {tokenizer.unk_id}
    assert not ids & tokenizer.special_ids
    # "年" stands in the vocabulary and is no piece of the model: only unknown text yields it.
    assert ids <= {*tokenizer.replacement_ids.tolist(), tokenizer.vocabulary.index("年")}


def test_offsets_words_and_templates(tokenizer):
    text = "“In 1999,” 今天 x\u200by"
    encoding = tokenizer.encode_batch([text])
    spelt = [text[a:b] for a, b in zip(encoding.starts, encoding.ends, strict=True)]
    assert "".join(spelt) in ("“In1999,”今天xy", "“In1999,”今天x\u200by")
    begins = encoding.starts[word_starts([text], encoding, segmenter="none")].tolist()
    words = ["".join(text[a:b].split()) for a, b in zip(begins, [*begins[1:], len(text)], strict=True)]
    assert words[1:4] == ["In", "1999", ","]
    assert tokenizer.template == Template((0,), (2, 2), (2,), segment_ids=(0, 0))
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.mask_id) == (1, 3, tokenizer.vocab_size - 1)


def test_files_round_trip_and_say_nothing_of_the_segmentation(tokenizer, tmp_path: Path):
    assert tuple(SEGMENTATIONS) == NAMES
    model_file, vocab_file = tokenizer.save(tmp_path)
    assert (model_file.name, vocab_file.name) == ("sentencepiece.bpe.model", "vocab.txt")
    again: Tokenizer = load_tokenizer(
        vocab_file=vocab_file, spm_model_file=model_file, segmentation=tokenizer.segmentation
    )
    assert again.fingerprint == tokenizer.fingerprint
    # Two files of which one lists the other's pieces are ERNIE-M's, cut as by PaddleNLP unless another way is named.
    default = load_tokenizer(vocab_file=vocab_file, spm_model_file=model_file)
    assert isinstance(default, ErnieMTokenizer)
    assert (default.fingerprint == tokenizer.fingerprint) == (tokenizer.segmentation == "paddlenlp")
    alone = load_tokenizer(spm_model_file=model_file)
    assert alone.vocab_size == 800


def test_a_vocabulary_may_name_its_ids(tmp_path: Path):
    path = tmp_path / "vocab.txt"
    path.write_text("[CLS]\t1\n[UNK]\t0\n▁a\t2\n")
    assert read_numbered_vocabulary(path) == ["[UNK]", "[CLS]", "▁a"]
    assert lists_pieces(path)
    path.write_text("[CLS]\n[UNK]\t1\n▁a\n")
    assert read_numbered_vocabulary(path) == ["[CLS]", "[UNK]", "▁a"]
    for content, message in (
        ("a\t0\nb\t0\n", "line 2: the id 0 of 'b', but line 1 has it too"),
        ("a\nb\t7\n", "line 2: the id 7 of 'b', but there are 2 tokens"),
        ("a\tb\n", r"line 1: 'a\\tb'; expected a token, or a token, a TAB and its id"),
        ("a\na\n", "line 2: 'a' is in line 1 too"),
    ):
        path.write_text(content)
        with pytest.raises(app.UsageError, match=message):
            read_numbered_vocabulary(path)


@pytest.mark.parametrize(
    "content", ["[PAD]\n[UNK]\n[CLS]\na\n", "<unk>\t0\n[CLS]\t0\n[UNK]\t0\n▁a\t-3.1\n", "▁a\n", ""]
)
def test_other_vocabularies_beside_a_model_are_passed_over(content: str, tmp_path: Path, model: bytes):
    (tmp_path / "vocab.txt").write_text(content)
    (tmp_path / "x.model").write_bytes(model)
    assert not lists_pieces(tmp_path / "vocab.txt")
    assert load_tokenizer(vocab_file=tmp_path / "vocab.txt", spm_model_file=tmp_path / "x.model").vocab_size == 800


def test_usage_errors(tmp_path: Path, model: bytes):
    vocab_file, model_file = tmp_path / "vocab.txt", tmp_path / "x.model"
    vocab_file.write_text("[CLS]\n[UNK]\n▁a\n")
    model_file.write_bytes(model)
    with pytest.raises(app.UsageError, match=r"x\.model with .*vocab\.txt: .* 3 tokens lacks \[PAD\], \[SEP\], \[MASK"):
        load_tokenizer(vocab_file=vocab_file, spm_model_file=model_file)
    with pytest.raises(app.UsageError, match="--segmentation=hf is of ERNIE-M's tokenizer, which has two files: give"):
        load_tokenizer(vocab_file=vocab_file, segmentation="hf")
    with pytest.raises(app.UsageError, match="--segmentation=jieba: expected one of paddlenlp, hf, ernie_repo"):
        load_tokenizer(vocab_file=vocab_file, spm_model_file=model_file, segmentation="jieba")


def test_records_keep_the_segmentation_that_was_the_default(
    tmp_path: Path, model: bytes, vocabulary: list[str], capsys
):
    tokenizer = ErnieMTokenizer(model, [*dict.fromkeys(vocabulary)])
    model_file, vocab_file = tokenizer.save(tmp_path)
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    given = {"input_file": tmp_path / "text.txt", "output_file": tmp_path / "text.tfrecord", "objective": "masked_lm"}
    given |= {"vocab_file": vocab_file, "spm_model_file": model_file, "num_workers": 1, "max_seq_length": 64}
    create_pretraining_data.main(
        parse(create_pretraining_data.Options, [f"--{name}={value}" for name, value in given.items()])
    )
    manifest = json.loads((tmp_path / "text.manifest.json").read_text())
    assert manifest["flags"]["segmentation"] == "paddlenlp"
    assert manifest["tokenizer"]["fingerprint"] == tokenizer.fingerprint
    capsys.readouterr()
    inspect_records.main(
        parse(inspect_records.Options, ["--action=show", f"--input_file={tmp_path / 'text.tfrecord'}", "--limit=1"])
    )
    assert "《书》" in capsys.readouterr().out
