"""The tokenizers in graphs: equal to the normative paths on any text, inside tf.data and SavedModels too."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow
from absl.app import UsageError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_sentencepiece import TEXT

from data import labelled
from data.tokenizers import Tokenizer
from data.tokenizers.ernie_m import ErnieMTokenizer
from data.tokenizers.in_graph import InGraphFeatures, in_graph
from data.tokenizers.sentencepiece import SentencePieceTokenizer
from data.tokenizers.training import train_sentencepiece
from data.tokenizers.wordpiece import WordPieceTokenizer

pytestmark = pytest.mark.slow

tf: Any = tensorflow
LATIN = "abcdefghijklmnopqrstuvwxyz0123456789"
VOCABULARY = [
    *["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]", "mask", "the", "un", "##believ", "##able"],
    *["the", "", "\0", "\ufffd"],  # one that comes again, and what no text can be
    *LATIN,
    *(f"##{c}" for c in LATIN),
    *"!#,-.[]`'，。中国学习é\ufffe\ue000\u0378😀𠀀𬺡\u2028\u302e\U0001d165\uf900\u8c48\u1112",
    *(f"##{c}" for c in "国é\ufffe\ue000😀\u302e\u302f\U0001d165\u1161\u11abας\u0345σ"),
    *("α", "σ", "ς", "ab", "##ab", "\u302e\U0001d165", "ﬁ"),
]
# What the rules treat in ways of their own, and what libraries disagree about: by kind.
KINDS = {
    "latin": "aBbéÅﬁİıŒß",
    "marks": "\u0301\u0300\u0345\u034f\u302e\u302f\u0327\U0001d165\U0001d16d\u0b57\u094d\ufe0f\u20dd\u1dce",
    "sigma": "ΣσςΑα'.\u00adᵃʰ:·Ⅷⓢ\u0345𝚺",
    "ideographs": "中国𠀀𪜀𫝀𫠠𬺰𰀀㐀\uf900\U0002f800\u9fff",
    "controls": "\0\x07\x0b\x1c\x7f\x85\u200b\u200d\ufeff\u2060\ufffd\ufffe\uffff\U000e0001",
    "spaces": " \t\n\r\u00a0\u3000\u2028\u2029\u1680",
    "private and unassigned": "\ue000\U000f0000\U0010ffff\u0378\U0003fffd\u2fe0",
    "emoji": "😀👩\u200d👩🏽❤\ufe0f🇨🇳",
    "punctuation": "，。,.[]#-`$+~\u1fef\u037e—“_",
    "scripts": "한ガｶﾞกְअाམقﷺ½①ⅣǅＡ㍿",
}
texts = st.one_of(
    st.text(),
    st.text(st.one_of(*map(st.sampled_from, KINDS.values()))),
    st.text(st.sampled_from(KINDS["sigma"] + " ")),
    st.text(st.sampled_from(KINDS["marks"] + "a")),
    st.sampled_from(["[MASK] [CLS]", "##a", "unbelievable", "a" * 200, "a" * 201, "é" * 200, "😀" * 201, "", " "]),
)


def all_kinds() -> dict[str, Tokenizer]:
    models = {
        "albert": train_sentencepiece(
            TEXT,
            vocab_size=900,
            model_type="unigram",
            layout="albert",
            do_lower_case=True,
            character_coverage=0.98,
        ),
        "xlmr": train_sentencepiece(
            TEXT, vocab_size=900, model_type="bpe", layout="xlmr", do_lower_case=False, character_coverage=0.98
        ),
    }
    return {
        "wordpiece uncased": WordPieceTokenizer(VOCABULARY),
        "wordpiece cased": WordPieceTokenizer(VOCABULARY, do_lower_case=False),
        "albert uncased": SentencePieceTokenizer(models["albert"]),
        "albert cased": SentencePieceTokenizer(models["albert"], do_lower_case=False),
        "xlmr": SentencePieceTokenizer(models["xlmr"]),
    }


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, tuple[Tokenizer, Any]]:
    found = {}
    for name, tokenizer in all_kinds().items():
        graph = in_graph(tokenizer)
        found[name] = tokenizer, tf.function(graph, input_signature=[tf.TensorSpec([None], tf.string)])
    return found


def expected_ids(tokenizer: Tokenizer, batch: list[str]) -> list[list[int]]:
    if isinstance(tokenizer, WordPieceTokenizer):
        return [[i for i, _, _ in tokenizer.encode_normatively(text)] for text in batch]
    return [tokenizer.encode(text) for text in batch]


batches = st.lists(texts, min_size=24, max_size=32)
hard = example(batch=["ΑΣ ΑΣα Σ ΑΣ' Α'Σ.α 𝚺", "\u302e\U0001d165 \u034fa\u302e\u034f\U0001d165", "", "中\u0301国"])
quick = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


def check(tokenizers, names: list[str], batch: list[str]) -> None:
    for name in names:
        tokenizer, graph = tokenizers[name]
        assert graph(tf.constant(batch, tf.string, shape=[len(batch)])).to_list() == expected_ids(tokenizer, batch)


@settings(deadline=None, max_examples=12, suppress_health_check=quick)
@given(batch=batches)
@hard
@example(batch=["é" * 201, "a b"])
def test_places_are_those_of_the_tokenizer(tokenizers, batch: list[str]):
    for name in ("wordpiece uncased", "wordpiece cased"):
        tokenizer, _ = tokenizers[name]
        ids, starts, ends = in_graph(tokenizer).with_places(tf.constant(batch, tf.string, shape=[len(batch)]))
        wanted = [triple for text in batch for triple in tokenizer.encode_normatively(text)]
        found = zip(ids.flat_values.numpy().tolist(), starts.numpy().tolist(), ends.numpy().tolist(), strict=True)
        assert list(found) == wanted


@settings(deadline=None, max_examples=12, suppress_health_check=quick)
@given(batch=batches)
@hard
@example(batch=["In 1999, the ½ café\u3000 ended.  ", "今天天气很好，[MASK]ﬁne<s>", "\u0301 a\u0301", "a▁b ▁ 龘1,9"])
def test_places_are_those_of_sentencepiece(tokenizers, batch: list[str]):
    for name in ("albert uncased", "albert cased", "xlmr"):
        tokenizer, _ = tokenizers[name]
        ids, *places = in_graph(tokenizer).with_places(tf.constant(batch, tf.string, shape=[len(batch)]))
        wanted = tokenizer.encode_batch(batch)
        np.testing.assert_array_equal(ids.row_splits, wanted.splits)
        np.testing.assert_array_equal(ids.flat_values, wanted.ids)
        np.testing.assert_array_equal(places, [wanted.starts, wanted.ends])


@settings(max_examples=90, deadline=None, suppress_health_check=quick)
@given(batch=batches)
@hard
@example(batch=[])
def test_pieces_of_words_are_those_of_the_normative_path(tokenizers, batch: list[str]):
    """More than 2,000 texts."""
    check(tokenizers, ["wordpiece uncased", "wordpiece cased"], batch)


@settings(max_examples=40, deadline=None, suppress_health_check=quick)
@given(batch=batches)
@hard
@example(batch=[])
def test_pieces_of_sentences_are_those_of_the_tokenizer(tokenizers, batch: list[str]):
    check(tokenizers, ["albert uncased", "albert cased", "xlmr"], batch)


def test_every_code_point_between_letters(tokenizers):
    codes = [c for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]
    batch = [f"a{chr(c)}b" for c in codes if c < 0x3400 or unicodedata.category(chr(c)) not in {"Lo", "Cn", "Co"}]
    batch += [f"a{chr(c)}b" for c in codes[0x3400::13]]
    for name, some in (("wordpiece uncased", batch), ("wordpiece cased", batch[::7])):
        tokenizer, graph = tokenizers[name]
        found, expected = graph(tf.constant(some)), tokenizer.encode_batch(some)
        np.testing.assert_array_equal(found.row_splits, expected.splits)
        np.testing.assert_array_equal(found.flat_values, expected.ids)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.binary(max_size=8), min_size=1))
def test_bytes_that_are_no_text_are_dropped(tokenizers, batch: list[bytes]):
    for name in ("wordpiece uncased", "albert uncased"):
        tokenizer, graph = tokenizers[name]
        assert graph(tf.constant(batch)).to_list() == expected_ids(
            tokenizer, [content.decode("utf-8", errors="replace") for content in batch]
        )


pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=12)


LENGTHS = (4, 7, 12)


@pytest.fixture(scope="module")
def features_in_graphs(tokenizers) -> dict[tuple[int, bool], Any]:
    tokenizer, _ = tokenizers["wordpiece uncased"]
    strings, made = tf.TensorSpec([None], tf.string), {length: InGraphFeatures(tokenizer, length) for length in LENGTHS}
    return {
        (length, two): tf.function(make, input_signature=[strings] * (2 if two else 1))
        for length, make in made.items()
        for two in (False, True)
    }


@settings(max_examples=40, deadline=None, suppress_health_check=quick)
@given(pairs, st.sampled_from(LENGTHS), st.booleans())
def test_features_are_those_of_batches(tokenizers, features_in_graphs, batch, length: int, two: bool):
    tokenizer, _ = tokenizers["wordpiece uncased"]
    a, b = (list(side) for side in zip(*batch, strict=True))
    dataset = labelled.ClassificationDataset(
        labelled.encode_examples(a, b if two else None, [0] * len(a), tokenizer, length), len(a), length
    )
    (expected,) = dataset.evaluation_batches(len(a))
    found = features_in_graphs[length, two](*((a, b) if two else (a,)))
    order, padding = dataset.evaluation_order(), length - expected["input_ids"].shape[1]
    assert found.keys() == {"input_ids", "input_mask", "segment_ids"}
    for name, value in found.items():
        assert value.dtype == tf.int32
        np.testing.assert_array_equal(value.numpy()[order], np.pad(expected[name], ((0, 0), (0, padding))))


@pytest.mark.parametrize("two", [False, True])
def test_features_in_xlmr_s_template(tokenizers, two: bool):
    tokenizer, _ = tokenizers["xlmr"]
    a, b = ["the unbelievable language", "中国", ""], ["a", "学习，the language model", "x"]
    encoded = labelled.encode_examples(a, b if two else None, [0] * 3, tokenizer, 12)
    (expected,) = labelled.ClassificationDataset(encoded, 3, 12).evaluation_batches(3)
    found = InGraphFeatures(tokenizer, 12)(tf.constant(a), tf.constant(b) if two else None)
    order = np.argsort(encoded.lengths_tokens, kind="stable")
    for name, value in found.items():
        np.testing.assert_array_equal(value.numpy()[order], expected[name])
    assert (encoded.ids == tokenizer.sep_id).sum() == (9 if two else 3)


def test_inside_a_pipeline(tokenizers):
    tokenizer, _ = tokenizers["wordpiece uncased"]
    make = InGraphFeatures(tokenizer, 8)
    rows = tf.data.Dataset.from_tensor_slices((["the unbelievable", "中国"], ["a", "学习，"])).batch(2).map(make)
    (batch,) = rows
    assert rows.element_spec["input_ids"].shape.as_list() == [None, 8]
    assert tokenizer.tokens(batch["input_ids"][1].numpy()) == [
        *("[CLS]", "中", "国", "[SEP]", "学", "习", "，", "[SEP]"),
    ]
    assert batch["segment_ids"][1].numpy().tolist() == [0] * 4 + [1] * 4


LOAD = """
import sys
import numpy as np
import tensorflow as tf
import tensorflow_text  # the operations
served = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
found = served(text_a=tf.constant(["中国 the ΑΣ", ""]), text_b=tf.constant(["学习", "a" * 300]))
np.savez(sys.argv[2], **{name: value.numpy() for name, value in found.items()})
"""


def test_saved_classifiers_take_raw_strings_in_another_process(tokenizers, tmp_path: Path):
    from modeling import ClassifierModel, Config

    names = {"wordpiece": "wordpiece uncased", "sentencepiece": "albert uncased"}
    config = Config(
        family="bert",
        vocab_size=1000,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=16,
        initializer_range=0.5,
    )

    class Served(tf.Module):
        def __init__(self):
            super().__init__()
            self.features = {short: InGraphFeatures(tokenizers[name][0], 16) for short, name in names.items()}
            self.model = ClassifierModel(config, 2)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)] * 2)
        def probabilities(self, text_a, text_b):
            made = {short: make(text_a, text_b) for short, make in self.features.items()}
            return {short: tf.nn.softmax(self.model(batch)["logits"]) for short, batch in made.items()}

    served = Served()
    tf.saved_model.save(served, str(tmp_path / "saved"), signatures=served.probabilities)
    command = [sys.executable, "-c", LOAD, str(tmp_path / "saved"), str(tmp_path / "found.npz")]
    subprocess.run(command, check=True, cwd=tmp_path)
    found = np.load(tmp_path / "found.npz")
    for short, name in names.items():
        encoded = labelled.encode_examples(["中国 the ΑΣ", ""], ["学习", "a" * 300], [0, 0], tokenizers[name][0], 16)
        dataset = labelled.ClassificationDataset(encoded, 2, 16)
        (batch,) = dataset.evaluation_batches(2)
        expected = tf.nn.softmax(served.model(batch)["logits"]).numpy()
        np.testing.assert_allclose(found[short][dataset.evaluation_order()], expected, atol=1e-6)


def test_the_tokenizer_of_ernie_m_has_no_graph_and_says_so():
    model = train_sentencepiece(["a b c", "b a c"] * 9, vocab_size=10, layout="xlmr")
    with pytest.raises(UsageError, match="the tokenizer of ERNIE-M has no graph: tokenise outside, and give the model"):
        in_graph(ErnieMTokenizer(model, ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "▁a", "[MASK]"]))
