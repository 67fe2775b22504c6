import itertools
import json
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import create_pretraining_data
from data import examples
from data.forms import Side
from data.forms.sides import original_ids
from data.pairing import PAIRINGS, Block, chunk_and_pair, make_divisible
from data.reading import PretrainingDataset
from data.tfrecord.decoding import decode_examples
from data.tfrecord.files import RecordFile

CHARACTERS = [chr(0x4E00 + i) for i in range(140)]
WORDS = ["".join(pair) for pair in itertools.product(CHARACTERS[:60], CHARACTERS[60:])]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, "。"]


def p_value(result: Any) -> float:
    """SciPy's results have no types of their own."""
    return result.pvalue


def divided(shape):
    lengths = [n for document in shape for n in document]
    ends = np.cumsum([len(document) for document in shape])
    begins = ends - [len(document) for document in shape]
    block = Block(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), begins, ends)
    total = sum(lengths)
    return make_divisible(block, np.ones(total, bool), np.zeros(total, bool), 60, 2)[0]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=12), min_size=1, max_size=6),
    st.sampled_from([2, 3, 5]),
    st.integers(4, 60),
    st.integers(0, 999),
)
def test_labels_tell_where_the_second_segment_is_from(shape, num_labels, max_tokens, seed):
    block = divided(shape)
    pairing = PAIRINGS[f"structure_{num_labels}"]
    pairs = chunk_and_pair(
        block, pairing, num_passes=2, max_tokens=max_tokens, short_seq_prob=0.2, random=np.random.default_rng(seed)
    )
    starts, edges = block.sentences[block.begin], set(block.sentences.tolist())
    use = np.zeros(int(block.sentences[-1]), int)
    for a, a_length, b, b_length, label in zip(
        pairs.first_start, pairs.first_length, pairs.second_start, pairs.second_length, pairs.label, strict=True
    ):
        assert {a, b, a + a_length, b + b_length} <= edges
        document_a, document_b = np.searchsorted(starts, [a, b], side="right") - 1
        assert (document_a == document_b) == (label != 0)
        match label:
            case 0:
                assert block.num_documents > 1
            case 1:
                assert a + a_length == b
            case 2:
                assert b + b_length == a
            case 3:
                assert a + a_length < b
            case 4:
                assert b + b_length < a
        assert label < num_labels
        # What the text goes on after: both segments of neighbours, else the one that comes first in it.
        if label in (0, 3):
            use[a : a + a_length] += 1
        elif label == 4:
            use[b : b + b_length] += 1
        else:
            use[min(a, b) : max(a + a_length, b + b_length)] += 1
    for begin, end in zip(block.begin, block.end, strict=True):
        assert (use[block.sentences[begin] : block.sentences[end]] == 2).all()


@pytest.mark.parametrize("num_labels", [2, 3, 5])
def test_all_labels_are_equally_frequent_even_in_short_documents(num_labels):
    rng = np.random.default_rng(3)
    sentences = (3, 9) if num_labels < 5 else (150, 200)
    block = divided([rng.integers(3, 9, rng.integers(*sentences)).tolist() for _ in range(40)])
    pairs = chunk_and_pair(
        block,
        PAIRINGS[f"structure_{num_labels}"],
        num_passes=60 if num_labels < 5 else 3,
        max_tokens=61 if num_labels < 5 else 100,
        short_seq_prob=0.1 if num_labels < 5 else 0.0,
        random=np.random.default_rng(4),
    )
    counts = np.bincount(pairs.label, minlength=num_labels)
    if num_labels < 5:
        assert stats.chisquare(counts).pvalue > 1e-4
        return
    # The last chunk of a document may have two sentences only, and then none to leave out.
    np.testing.assert_allclose(counts / counts.sum(), 0.2, atol=0.03)
    # Nor do lengths give away that sentences are missing, except at the end of a document.
    lengths = pairs.first_length + pairs.second_length
    medians = [np.median(lengths[pairs.label == label]) for label in (1, 2, 3, 4)]
    assert max(medians) - min(medians) <= 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("structbert")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    draw = random.Random(1)
    text = [
        "\n".join("".join(draw.choices(WORDS, k=draw.randint(3, 9))) + "。" for _ in range(draw.randint(4, 12)))
        for _ in range(60)
    ]
    (folder / "text.txt").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    return folder


def make(folder, name, text="text.txt", **flags):
    options = create_pretraining_data.Options(
        input_file=(str(folder / text),),
        output_file=(str(folder / name),),
        vocab_file=str(folder / "vocab.txt"),
        **{"max_seq_length": 64, "max_predictions_per_seq": 10, "dupe_factor": 4, "num_workers": 1, **flags},
    )
    create_pretraining_data.main(options)
    return json.loads((folder / name).with_suffix(".manifest.json").read_text(encoding="utf-8"))


def all_batches(path, seed=0):
    dataset = PretrainingDataset([str(path)], 16, seed=seed)
    batches = [*dataset.evaluation_batches(64)]
    batch = {name: np.concatenate([part[name] for part in batches]) for name in batches[0]}
    return dataset, {name: value[batch["input_mask"].any(axis=1)] for name, value in batch.items()}


def test_records_hold_text_whose_labels_are_true(folder):
    manifest = make(folder, "static.tfrecord", objective="structbert")
    dataset, batch = all_batches(folder / "static.tfrecord")
    assert (dataset.max_word_order_per_seq, manifest["num_pair_labels"]) == (12, 3)
    assert manifest["counts"]["word_order_predictions"] == batch["word_order_weights"].sum()
    documents = [d.replace("\n", "") for d in (folder / "text.txt").read_text(encoding="utf-8").split("\n\n")]
    seen = Counter()
    names = ("segment_ids", "input_mask", "next_sentence_labels")
    for ids, segments, mask, label in zip(original_ids(batch, Side()), *(batch[n] for n in names), strict=True):
        length, second = mask.sum(), int(np.argmax(segments))
        a, b = ("".join(VOCABULARY[i] for i in part) for part in (ids[1 : second - 1], ids[second : length - 1]))
        (of_a,), (of_b,) = ([i for i, d in enumerate(documents) if part in d] for part in (a, b))
        assert (of_a == of_b) == (label > 0)
        if label:
            assert (documents[of_a].index(a) < documents[of_a].index(b)) == (label == 1)
        seen[int(label)] += 1
    n = sum(seen.values())
    assert {str(label): count for label, count in seen.items()} == manifest["counts"]["labels"]
    assert all(abs(seen[label] / n - 1 / 3) < 4 * np.sqrt(2 / 9 / n) for label in range(3))


def test_words_shuffled_on_the_fly_are_distributed_as_those_in_records(folder):
    make(folder, "s.tfrecord", objective="structbert", short_seq_prob=0.0)
    make(folder, "d.tfrecord", objective="structbert", short_seq_prob=0.0, masking="dynamic")
    static, a = all_batches(folder / "s.tfrecord")
    dynamic, b = all_batches(folder / "d.tfrecord")
    assert {name: value.shape for name, value in a.items()} == {name: value.shape for name, value in b.items()}
    assert {name: value.dtype for name, value in a.items()} == {name: value.dtype for name, value in b.items()}
    # The same texts, and other masks and windows of the same law.
    assert sorted(map(tuple, original_ids(a, Side()))) == sorted(map(tuple, original_ids(b, Side())))
    assert p_value(stats.ks_2samp(a["word_order_weights"].sum(axis=1), b["word_order_weights"].sum(axis=1))) > 1e-4
    places = [x["word_order_positions"][x["word_order_weights"] > 0] // 8 for x in (a, b)]
    assert p_value(stats.chi2_contingency([np.bincount(p, minlength=8) for p in places])) > 1e-4
    row, slot = np.nonzero(b["word_order_weights"])
    moved = b["input_ids"][row, b["word_order_positions"][row, slot]] != b["word_order_ids"][row, slot]
    # 2 of 3 tokens of a random permutation move, but a few are equal to what takes their place.
    assert abs(moved.mean() - 2 / 3) < 0.03
    one_epoch = dynamic.num_examples // 16
    assert static.batch(0).keys() == dynamic.batch(0).keys()
    first, again, later = dynamic.batch(0), dynamic.batch(0), dynamic.batch(one_epoch + 1)
    np.testing.assert_array_equal(first["word_order_positions"], again["word_order_positions"])
    assert later["word_order_weights"].shape == first["word_order_weights"].shape


def test_word_order_needs_no_pairs_and_pairs_no_word_order(folder):
    words = make(folder, "w.tfrecord", objective="masked_lm", trigram_rate=0.1, trigram_tokens=2)
    assert (words["max_word_order_per_seq"], words["num_pair_labels"]) == (14, 1)
    pairs = make(folder, "p.tfrecord", objective="structbert", trigram_rate=0.0)
    assert (pairs["max_word_order_per_seq"], pairs["num_pair_labels"]) == (0, 3)
    _, batch = all_batches(folder / "p.tfrecord")
    assert not any(name.startswith("word_order") for name in batch)
    make(folder, "q.tfrecord", objective="structbert")
    with pytest.raises(UsageError, match="give --input_file shards of one kind"):
        PretrainingDataset([str(folder / "p.tfrecord"), str(folder / "q.tfrecord")], 4)


def test_shards_without_their_manifest_keep_their_word_order(folder):
    make(folder, "m.tfrecord", objective="albert", trigram_rate=0.05)
    _, with_manifest = all_batches(folder / "m.tfrecord")
    (folder / "m.manifest.json").unlink()
    dataset, batch = all_batches(folder / "m.tfrecord")
    assert dataset.max_word_order_per_seq == 12
    for name, value in with_manifest.items():
        np.testing.assert_array_equal(batch[name], value)


def test_preset_released_is_what_the_flags_say_one_by_one(folder):
    make(folder, "r.tfrecord", objective="structbert", preset="released")
    flags = {"trigram_rate": 0.1, "trigram_windows": "any", "trigram_overlap": True, "trigram_labels": "changed"}
    make(folder, "f.tfrecord", objective="structbert", **flags)
    assert (folder / "r.tfrecord").read_bytes() == (folder / "f.tfrecord").read_bytes()
    manifest = make(folder, "o.tfrecord", objective="structbert", preset="released", trigram_overlap=False)
    assert manifest["recipe"]["word_order"]["overlap"] is False
    assert manifest["recipe"]["word_order"]["windows"] == "any"


def test_blocks_never_leave_a_document_alone(monkeypatch, folder):
    monkeypatch.setattr(examples, "BLOCK_CHARACTERS", 40)
    manifest = make(folder, "b.tfrecord", objective="structbert")
    assert not manifest["counts"].get("pairs_without_another_document")
    shares = np.asarray([*manifest["counts"]["labels"].values()]) / manifest["num_examples"]
    assert stats.chisquare(shares * manifest["num_examples"]).pvalue > 1e-4


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("一是了我。\n不人在他。\n", {}, "of the 1 document.s. in the input no two are in one file: put a blank line"),
        ("一是。\n\n不人。\n\n在他。\n", {"objective": "structbert_5way"}, "has 3 sentences: put one sentence a line"),
        ("一是。\n\n不人。\n", {"random_next_sentence": True}, "--random_next_sentence=True is --objective=bert"),
        (
            "一是。\n\n不人。\n",
            {"objective": "masked_lm", "pack_sequences": True, "trigram_rate": 0.1, "preset": "released"},
            "give --trigram_windows=unmasked",
        ),
    ],
)
def test_errors_say_what_to_do(folder, text, flags, message):
    (folder / "short.txt").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message) as error:
        make(folder, "short.tfrecord", "short.txt", **{"objective": "structbert", **flags})
    assert "\n" not in str(error.value)
    assert not (folder / "short.tfrecord").exists()


def test_a_record_is_bert_s_with_three_more_features(folder):
    make(folder, "x.tfrecord", objective="structbert")
    columns, _ = decode_examples(RecordFile(folder / "x.tfrecord").read(np.asarray([0])))
    assert {name for name in columns if name.startswith("word_order")} == {
        "word_order_positions",
        "word_order_ids",
        "word_order_weights",
    }
