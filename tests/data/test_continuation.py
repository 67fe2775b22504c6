"""Sources and targets: fragments of whole sentences, cut near their share or at drawn lengths, in two rows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_pairing import block_of, prepare

import create_pretraining_data
import inspect_records
import plan_training
from commands.flags import parse
from data.continuation import Continuation, continuations, too_short
from data.forms import FORMS
from data.forms.sides import original_ids
from data.objectives import OBJECTIVES, Continuing
from data.reading import PretrainingDataset
from data.schema import shapes
from data.tfrecord.encoding import encode_examples
from data.tfrecord.files import RecordFile
from data.tokenizers.training import train_sentencepiece

ROOT = Path(__file__).resolve().parents[2]
PALM = OBJECTIVES["palm"].continuing or Continuing()
PLUG = OBJECTIVES["plug"].continuing or Continuing()

documents = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12), min_size=1, max_size=6)


def cut(shape, continuation, max_seq_length, *, short=0.0, passes=1, seed=0, starts=None):
    total = sum(map(sum, shape))
    starts = np.ones(total, bool) if starts is None else starts
    block, _ = prepare(shape, continuation.most_tokens, num_segments=1, starts=starts)
    pairs, lost = continuations(
        block,
        starts,
        continuation,
        max_seq_length=max_seq_length,
        num_passes=passes,
        short_seq_prob=short,
        random=np.random.default_rng(seed),
    )
    np.testing.assert_array_equal(pairs.second_start, pairs.first_start + pairs.first_length)
    assert not pairs.label.any()
    return block, pairs, lost


@st.composite
def by_share(draw):
    """Amounts that go together, and the length of a source's row."""
    fraction = draw(st.floats(0.05, 0.95))
    length = draw(st.integers(2, 60))
    source = int(np.clip(np.rint(length * fraction), 1, length - 1))
    row = source + 2 + draw(st.integers(0, 9))
    positions = length - source + 1 + draw(st.integers(0, 9))
    found = Continuation(length, fraction, draw(st.integers(0, 4)), positions)
    found.check(row)
    return found, row


@settings(max_examples=100, deadline=None)
@given(documents, by_share(), st.floats(0, 1), st.integers(1, 2), st.integers(0, 99), st.data())
def test_fragments_are_sentences_cut_within_a_word_of_their_share(shape, amounts, short, passes, seed, data):
    continuation, row = amounts
    total = sum(map(sum, shape))
    starts = np.asarray(data.draw(st.lists(st.booleans(), min_size=total, max_size=total)), bool)
    block, pairs, lost = cut(shape, continuation, row, short=short, passes=passes, seed=seed, starts=starts)
    sentences, lengths = set(block.sentences.tolist()), pairs.first_length + pairs.second_length
    assert (lengths <= continuation.fragment_length).all()
    assert (pairs.first_length >= 1).all()
    assert (pairs.second_length >= 1).all()
    assert (pairs.first_length + 2 <= row).all()
    assert (pairs.second_length + 1 <= continuation.max_target_length).all()
    ends = block.sentences[block.end]
    words = {*np.flatnonzero(starts).tolist(), total}
    for start, middle, length, missing in zip(
        pairs.first_start.tolist(), pairs.second_start.tolist(), lengths.tolist(), lost.tolist(), strict=True
    ):
        assert start in sentences
        # A fragment ends with a sentence, unless the sentence alone, or behind one of one token, is too long.
        assert start + length + missing in sentences
        assert not missing or not sentences & set(range(start + 2, start + length + missing))
        assert start + length <= ends[np.searchsorted(ends, start, side="right")]
        least, most = max(length - continuation.max_target_length + 1, 1), min(length - 1, row - 2)
        wanted = start + int(np.clip(np.rint(length * continuation.source_fraction), least, most))
        distances = [abs(w - wanted) for w in words & set(range(start + least, start + most + 1))]
        nearest = min(distances, default=9)
        assert abs(middle - wanted) == (nearest if nearest <= 8 else 0)


@settings(max_examples=60, deadline=None)
@given(documents, by_share(), st.integers(0, 99))
def test_a_stride_slides_until_the_document_s_end_and_none_lays_fragments_side_by_side(shape, amounts, seed):
    continuation, row = amounts
    block, pairs, lost = cut(shape, continuation, row, seed=seed)
    ends = pairs.second_start + pairs.second_length + lost
    found = list(zip(pairs.first_start.tolist(), ends.tolist(), strict=True))
    expected = []
    for first, last in zip(block.begin.tolist(), block.end.tolist(), strict=True):
        sentences = block.sentences[first : last + 1].tolist()
        begin, done = 0, False
        while begin < len(sentences) - 1 and sentences[-1] - sentences[begin] > 1 and not done:
            full = [s for s in sentences[begin + 1 :] if s - sentences[begin] <= continuation.fragment_length]
            least = next(s for s in sentences[begin + 1 :] if s - sentences[begin] > 1)
            end = max(full[-1] if full else 0, least)
            expected.append((sentences[begin], end))
            done = end == sentences[-1]
            begin = begin + continuation.stride if continuation.stride else sentences.index(end)
    assert sorted(found) == sorted(expected)
    assert too_short(block, continuation).sum() == sum(sum(document) == 1 for document in shape)


@settings(max_examples=60, deadline=None)
@given(documents, st.integers(0, 3), st.data())
def test_drawn_lengths_are_in_their_ranges(shape, stride, data):
    low, high = sorted(data.draw(st.tuples(st.integers(3, 20), st.integers(3, 60))))
    least, most = sorted(data.draw(st.tuples(st.integers(2, 20), st.integers(2, 60))))
    continuation = Continuation(500, 0.8, stride, most, (low, high), (least, most))
    continuation.check(high)
    total = sum(map(sum, shape))
    starts = np.asarray(data.draw(st.lists(st.booleans(), min_size=total, max_size=total)), bool)
    block, pairs, lost = cut(shape, continuation, high, passes=2, seed=total, starts=starts)
    assert not lost.any()
    assert ((pairs.first_length + 2 >= low) & (pairs.first_length + 2 <= high)).all()
    assert ((pairs.second_length + 1 >= least) & (pairs.second_length + 1 <= most)).all()
    needed, ends = low - 2 + least - 1, block.sentences[block.end]
    document = np.searchsorted(ends, pairs.first_start, side="right")
    assert (pairs.second_start + pairs.second_length <= ends[document]).all()
    assert set(pairs.first_start.tolist()) <= set(block.sentences.tolist())
    tokens = ends - block.sentences[block.begin]
    assert too_short(block, continuation).tolist() == (tokens < needed).tolist()
    assert set(document.tolist()) == set(np.flatnonzero(tokens >= needed).tolist())
    if stride:
        expected = [
            start
            for first, last in zip(block.begin, block.end, strict=True)
            for start in block.sentences[first:last:stride]
            if block.sentences[last] - start >= needed
        ]
        assert sorted(pairs.first_start.tolist()) == sorted(expected * 2)


def test_drawn_lengths_are_uniform_and_independent_in_long_documents():
    continuation = Continuation.of(PLUG, 512)
    assert (continuation.source_lengths, continuation.target_lengths) == ((32, 512), (32, 512))
    _, pairs, _ = cut([[20] * 60_000], continuation, 512, seed=1)
    source, target = pairs.first_length[:-5] + 2, pairs.second_length[:-5] + 1
    for lengths in (source, target):
        assert stats.chisquare(np.bincount(lengths, minlength=513)[32:]).pvalue > 1e-4
    found: Any = stats.spearmanr(source, target)
    assert found.pvalue > 1e-4


def test_amounts_of_the_papers_and_what_the_rows_hold():
    assert Continuation.of(PALM, 402) == Continuation(500, 0.8, 1, 101)
    # 126 tokens of a source are 0.8 of 157.
    assert Continuation.of(PALM, 128) == Continuation(157, 0.8, 1, 32)
    assert Continuation.of(PALM, 512, max_target_length=65) == Continuation(320, 0.8, 1, 65)
    assert Continuation.of(PLUG, 128) == Continuation(500, 0.8, 0, 512, (32, 128), (32, 512))
    assert Continuation.of(PALM, 128, target_lengths=(8, 64)) == Continuation(500, 0.8, 1, 64, (32, 128), (8, 64))
    for length in range(5, 600):
        for positions in (None, 2, 3, 17, 101):
            for fraction in (0.05, 0.5, 0.8, 0.97):
                found = Continuation.of(PALM, length, source_fraction=fraction, max_target_length=positions)
                found.check(length)
                assert 2 <= found.fragment_length <= 500


# -- records -----------------------------------------------------------------------------------------------------------

VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"今天气很好我们学习语言模型，。北京明",
    "mod",
    "##el",
    "##s",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("data.examples.SMALLEST_SPAN_BYTES", 700)
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    text = "".join(
        f"今天天气很好{'学习' * (i % 7)}。\n我们学习 models。\n{'今天' * (i % 5)}学习。\n\n" for i in range(60)
    )
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    return tmp_path


def make(folder, name="x.tfrecord", **flags):
    options = {"objective": "palm", "max_seq_length": 24, "max_predictions_per_seq": 4, "dupe_factor": 1}
    options |= {"input_file": folder / "text.txt", "vocab_file": folder / "vocab.txt", "num_workers": 1}
    options |= {"output_file": folder / name, **flags}
    given = [f"--{name}={value}" for name, value in options.items()]
    create_pretraining_data.main(parse(create_pretraining_data.Options, given))
    return json.loads((folder / name).with_suffix(".manifest.json").read_text(encoding="utf-8"))


def multiset(*paths):
    return Counter(record for file in map(RecordFile, paths) for record in file.read(np.arange(len(file))))


def whole(path):
    dataset = PretrainingDataset(str(path), 1)
    (batch,) = dataset.evaluation_batches(dataset.num_examples)
    return batch


def texts(batch):
    """Source and target of every row as tokens, without specials, before masking."""
    sides = [original_ids(batch, side) for side in FORMS["source_target"].sides]
    for source, target in zip(*sides, strict=True):
        yield tuple([VOCABULARY[i] for i in ids if i not in (0, 2, 3)] for ids in (source, target))


KINDS: dict[str, dict[str, Any]] = {
    "by share": {},
    "whole words, shuffled": {"do_whole_word_mask": True, "trigram_rate": 0.2, "ngram": 3, "dupe_factor": 2},
    "drawn": {"objective": "plug", "source_length_range": "6,20", "target_length_range": "3,9", "fragment_stride": 1},
}


@pytest.mark.parametrize("masking", ["static", "dynamic"])
@pytest.mark.parametrize("kind", KINDS)
def test_records_go_all_the_way(folder, capsys, kind, masking):
    manifest = make(folder, masking=masking, **KINDS[kind])
    continuation = manifest["recipe"]["continuation"]
    assert manifest["lengths"]["target"] == continuation["max_target_length"] + 1
    path = folder / "x.tfrecord"
    dataset = PretrainingDataset(str(path), 5)
    batch = dataset.batch(0)
    found = {name: (value.shape, value.dtype.name) for name, value in batch.items()}
    assert found == shapes(FORMS["source_target"].schema, manifest["lengths"], 5)
    assert (dataset.max_target_length, dataset.positions) == (
        continuation["max_target_length"],
        24 + continuation["max_target_length"] + 1,
    )
    assert 0 < dataset.fill <= 1
    batch = whole(path)
    assert not batch["segment_ids"].any()
    assert batch["masked_lm_weights"].any(axis=1).mean() > 0.9
    sizes = batch["target_mask"].sum(axis=1)
    rows = np.arange(len(sizes))
    # [CLS] target [SEP], then zeros.
    assert (batch["target_ids"][:, 0] == 2).all()
    assert (batch["target_ids"][rows, sizes - 1] == 3).all()
    assert ((batch["target_ids"] == 0) == (batch["target_mask"] == 0)).all()
    plain = (folder / "text.txt").read_text(encoding="utf-8").replace(" ", "").replace("\n", "")
    for source, target in texts(batch):
        assert "".join(source + target).replace("##", "") in plain
        # Words stay whole.
        assert not target[0].startswith("##")

    def inspect(action, *flags):
        options = parse(inspect_records.Options, [f"--action={action}", f"--input_file={path}", *flags])
        return inspect_records.main(options), capsys.readouterr().out

    status, out = inspect("verify")
    assert status == 0, out
    _, out = inspect("show", "--limit=2")
    assert out.count("[CLS]") == out.count("[SEP]") == 4
    assert "label" not in out
    _, out = inspect("stats")
    assert f"of {dataset.positions}\n" in out


def test_examples_do_not_depend_on_processes_or_beam(folder):
    pytest.importorskip("apache_beam")
    one = make(folder, "one.tfrecord")
    make(folder, "three.tfrecord", num_workers=3)
    assert (folder / "one.tfrecord").read_bytes() == (folder / "three.tfrecord").read_bytes()
    beam = make(folder, "beam.tfrecord", runner="DirectRunner")
    assert multiset(folder / "one.tfrecord") == multiset(folder / "beam.tfrecord")
    assert all(one[name] == beam[name] for name in ("counts", "recipe", "lengths", "features"))


def test_compact_examples_are_the_static_ones_before_masking(folder):
    for masking in ("static", "dynamic"):
        make(folder, f"{masking}.tfrecord", masking=masking, **KINDS["whole words, shuffled"])
    static, dynamic = (whole(folder / f"{masking}.tfrecord") for masking in ("static", "dynamic"))
    np.testing.assert_array_equal(static["target_ids"], dynamic["target_ids"])
    assert list(texts(static)) == list(texts(dynamic))
    assert (static["input_ids"] != dynamic["input_ids"]).any()


def test_targets_are_in_the_tokenizer_s_own_specials(tmp_path):
    text = ROOT / "data/samples/zh/nature.txt"
    sentences = [line for line in text.read_text(encoding="utf-8").split("\n") if line]
    model = train_sentencepiece(sentences, vocab_size=1000, layout="xlmr", do_lower_case=False)
    (tmp_path / "spiece.model").write_bytes(model)
    flags = {"input_file": text, "vocab_file": "", "spm_model_file": tmp_path / "spiece.model", "do_lower_case": False}
    for masking in ("static", "dynamic"):
        make(tmp_path, **flags, masking=masking, max_seq_length=96, max_predictions_per_seq=12)
        batch = whole(tmp_path / "x.tfrecord")
        for ids, mask in ((batch["input_ids"], batch["input_mask"]), (batch["target_ids"], batch["target_mask"])):
            sizes = mask.sum(axis=1)
            # <s> A </s>
            assert (ids[:, 0] == 0).all()
            assert (ids[np.arange(len(ids)), sizes - 1] == 2).all()
            assert ((ids == 2) & (mask > 0)).sum() == len(ids)


def changed_records(folder, name, change):
    make(folder, name)
    batch = whole(folder / name)
    change(batch)
    (folder / name).write_bytes(encode_examples(batch)[0].tobytes())
    return folder / name


@pytest.mark.parametrize(
    ("feature", "row", "column", "value", "problem"),
    [
        ("target_mask", 3, 1, 0, "1 record(s): target_ids: target_mask is not ones and then zeros"),
        ("target_ids", 2, 0, 9, "1 record(s): target_ids: not begun by the tokenizer's first special"),
        ("target_ids", 2, 1, 99, "1 record(s): target_ids: an id outside the vocabulary"),
        ("target_mask", 5, slice(None), 0, "1 record(s): no token: target_mask is empty"),
        ("target_mask", 5, slice(2, None), 0, "1 record(s): target_ids: no token between its specials"),
        ("input_mask", 4, 1, 0, "1 record(s): input_mask is not ones and then zeros"),
    ],
)
def test_verify_finds_what_is_wrong_with_a_side(folder, capsys, feature, row, column, value, problem):
    def change(batch):
        batch[feature][row, column] = value

    path = changed_records(folder, "bad.tfrecord", change)
    assert inspect_records.main(parse(inspect_records.Options, ["--action=verify", f"--input_file={path}"])) == 1
    assert problem in capsys.readouterr().out


def test_compact_records_whose_source_is_too_long_are_found_and_refused(folder, capsys):
    manifest = make(folder, masking="dynamic")
    path = folder / "x.tfrecord"
    from data.tfrecord.decoding import decode_examples

    columns, _ = decode_examples(RecordFile(path).read(np.arange(manifest["num_examples"])))
    lengths = np.diff(columns["input_ids"].splits)
    record = {name: (columns[name].padded(60).astype(np.int32), lengths) for name in ("input_ids", "token_boundary")}
    first = lengths - 1
    assert first.max() > 24
    record |= {"first_segment_length": first[:, None], "next_sentence_labels": np.zeros(len(first), np.int32)}
    path.write_bytes(encode_examples(record)[0].tobytes())
    assert inspect_records.main(parse(inspect_records.Options, ["--action=verify", f"--input_file={path}"])) == 1
    assert "a segment longer than its row" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"a source of \d+ tokens, for rows of 24"):
        whole(path)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"max_target_length": 1}, "--max_target_length=1: expected .*at least 2"),
    ({"source_fraction": 0}, "--source_fraction=0: a fragment without a source or without a target"),
    ({"source_fraction": 1}, "--source_fraction=1: a fragment without a source or without a target"),
    ({"fragment_length": 40}, "makes sources of 32 tokens and 2 special.s., but --max_seq_length=24: give .*=34"),
    ({"fragment_length": 20, "max_target_length": 4}, "makes targets of 4 tokens and 1 special.s., but --max_target_l"),
    ({"source_length_range": "4,30"}, "--source_length_range=4,30: expected .* from 3 to --max_seq_length=24"),
    (
        {"source_length_range": 20, "target_length_range": "9,3"},
        "--target_length_range=9,3: expected the least and the greatest",
    ),
    ({"target_length_range": "1,2,3"}, "--target_length_range=1,2,3: expected|target_length_range=1: expected"),
    ({"objective": "plug"}, "--source_length_range=32,24: expected"),
    ({"objective": "plug", "source_length_range": "20,24"}, "needs 49 tokens for a source and its target, but all"),
    ({"objective": "plug", "source_fraction": 0.5}, "--source_fraction=0.5 does nothing without"),
    ({"objective": "plug", "short_seq_prob": 0.5}, "--short_seq_prob=0.5 does nothing without"),
    ({"objective": "albert", "fragment_stride": 0}, "--fragment_stride=0 does nothing without an --objective with tar"),
    ({"pack_sequences": True}, "--pack_sequences needs --objective=masked_lm: with palm"),
    ({"random_next_sentence": True}, "--random_next_sentence=True asks for pairs, --objective=palm for none"),
]


@pytest.mark.parametrize(("flags", "message"), MISTAKES)
def test_mistakes_are_one_line_and_nothing_is_written(folder, flags, message):
    before = sorted(folder.iterdir())
    with pytest.raises(UsageError, match=message) as error:
        make(folder, **flags)
    assert "\n" not in str(error.value)
    assert sorted(folder.iterdir()) == before


def test_records_of_other_targets_are_not_read_together(folder):
    make(folder, "a.tfrecord")
    make(folder, "b.tfrecord", max_target_length=17)
    with pytest.raises(UsageError, match=r"b\.tfrecord has lengths\.target=18 but .*a\.tfrecord has .*target=7"):
        PretrainingDataset(f"{folder}/*.tfrecord", 2)


def test_the_planner_takes_the_length_of_targets():
    flags = ["--bert_config_file=x", "--device=cpu", "--objective=palm", "--max_seq_length=402"]
    for more, expected in (([], 102), (["--max_target_length=140"], 141)):
        batch = plan_training.abstract_batch(parse(plan_training.Options, [*flags, *more]))
        assert batch["target_ids"].shape == (32, expected)


def test_a_lonely_sentence_is_cut_inside():
    _, pairs, _ = cut([[10], [1], [2]], Continuation.of(PALM, 64), 64)
    assert (pairs.first_length.tolist(), pairs.second_length.tolist()) == ([8, 1], [2, 1])
    assert block_of([[10], [1], [2]]).num_documents == 3
