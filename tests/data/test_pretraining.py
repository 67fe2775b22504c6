import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from absl.app import UsageError
from hypothesis import given
from hypothesis import strategies as st

from data import examples
from data.corpus import Span, expand_inputs
from data.examples import read_blocks
from data.forms.packed import sequence_ids
from data.forms.segments import join_pairs
from data.masking import Masking
from data.objectives import OBJECTIVES
from data.pairing import PAIRINGS, Pairs
from data.reading import PretrainingDataset
from data.recipe import Recipe, Vocabulary
from data.tfrecord.decoding import decode_examples
from data.tfrecord.files import RecordFile
from data.tokenizers.template import Template
from data.tokenizers.wordpiece import WordPieceTokenizer
from data.writing import pieces, spans
from data.writing.local import create_examples
from data.writing.output import Output

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    "北京",
    "今天",
    "天气",
    "很好",
    "我们",
    "学习",
    "语言",
    "模型",
    "中华人民共和国",
    "一心一意",
    " the ",
    " model ",
]
CHARACTERS = sorted(set("".join(word for word in WORDS if not word.isascii())))
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, *("##" + c for c in CHARACTERS), "，", "。"]
VOCABULARY += ["the", "mod", "##el", "##s"]


@pytest.fixture(scope="module")
def vocab_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer(vocab_file):
    return WordPieceTokenizer.load(vocab_file, do_lower_case=True)


def write_corpus(path, documents=60, seed=0):
    draw = random.Random(seed)
    lines = []
    for _ in range(documents):
        sentences = ("".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(draw.randint(1, 9)))
        lines += [*(sentence + draw.choice("，。") for sentence in sentences), ""]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def recipe(**changes):
    defaults = {
        "objective": "albert",
        "masking": Masking(0.15, 6),
        "dynamic": False,
        "whole_word": True,
        "segmenter": "rjieba",
        "max_seq_length": 40,
        "dupe_factor": 2,
        "short_seq_prob": 0.1,
        "seed": 5,
    }
    return Recipe(**{**defaults, **changes})


@pytest.fixture
def small_spans(monkeypatch):
    """Spans and pieces so small that a test has many of each."""
    monkeypatch.setattr(examples, "SMALLEST_SPAN_BYTES", 2000)
    monkeypatch.setattr(pieces, "PIECE_TOKENS", 2000)
    monkeypatch.setattr(examples, "BLOCK_CHARACTERS", 300)
    monkeypatch.setattr(examples, "BATCH_TOKENS", 400)


def make(tmp_path, tokenizer, name="x.tfrecord", workers=1, output=None, corpus=None, **changes):
    corpus = corpus or write_corpus(tmp_path / "corpus.txt")
    output = output or Output((tmp_path / name,))
    result = create_examples([corpus], output, recipe(**changes), tokenizer, num_workers=workers)
    return result.manifest, [output.manifest_path.parent / shard["name"] for shard in result.manifest["shards"]]


def read(paths):
    records = [record for path in paths for record in (lambda f: f.read(np.arange(len(f))))(RecordFile(path))]
    columns, bad = decode_examples(records)
    assert not bad.any()
    return {name: column.matrix(len(column.values) // len(records)) for name, column in columns.items()}


def test_examples_are_what_was_asked_for(tmp_path, tokenizer, small_spans):
    manifest, paths = make(tmp_path, tokenizer)
    examples = read(paths)
    n = manifest["num_examples"]
    assert {name: value.shape for name, value in examples.items()} == {
        "input_ids": (n, 40),
        "input_mask": (n, 40),
        "segment_ids": (n, 40),
        "masked_lm_positions": (n, 6),
        "masked_lm_ids": (n, 6),
        "masked_lm_weights": (n, 6),
        "next_sentence_labels": (n, 1),
    }
    text = "".join((tmp_path / "corpus.txt").read_text(encoding="utf-8").split())
    for i in range(n):
        row = {name: value[i] for name, value in examples.items()}
        length = row["input_mask"].sum()
        assert row["input_mask"].tolist() == [1] * length + [0] * (40 - length)
        ids, count = row["input_ids"].copy(), int(row["masked_lm_weights"].sum())
        ids[row["masked_lm_positions"][:count]] = row["masked_lm_ids"][:count]
        assert not ids[length:].any()
        assert ids[0] == tokenizer.cls_id
        separators = np.flatnonzero(ids == tokenizer.sep_id)
        assert len(separators) == 2
        assert separators[1] == length - 1
        assert row["segment_ids"].tolist() == [0] * (separators[0] + 1) + [1] * (length - separators[0] - 1) + [0] * (
            40 - length
        )
        first, second = ids[1 : separators[0]], ids[separators[0] + 1 : length - 1]
        segments = ["".join(t.removeprefix("##") for t in tokenizer.tokens(s.tolist())) for s in (first, second)]
        assert all(segment in text for segment in segments)
        assert not np.isin(row["masked_lm_ids"][:count], list(tokenizer.special_ids)).any()
    assert manifest["counts"]["labels"] == {
        str(k): v for k, v in sorted(Counter(examples["next_sentence_labels"].ravel().tolist()).items())
    }
    assert manifest["counts"]["predictions"] == examples["masked_lm_weights"].sum()
    assert sum(shard["examples"] for shard in manifest["shards"]) == n


def test_every_sentence_is_there(tmp_path, tokenizer):
    """At a length that truncates nothing, each pass holds each token of the text once."""
    manifest, paths = make(
        tmp_path, tokenizer, max_seq_length=400, dupe_factor=3, masking=Masking(0, 1), short_seq_prob=0.5
    )
    ids = read(paths)["input_ids"]
    text = (tmp_path / "corpus.txt").read_text(encoding="utf-8")
    want = Counter(i for line in text.split("\n") for i in tokenizer.encode(line))
    got = Counter(ids.ravel().tolist())
    assert manifest["counts"].get("truncated_tokens", 0) == 0
    lost = manifest["counts"].get("documents_too_short_to_pair", 0)
    for special in tokenizer.special_ids - {tokenizer.unk_id}:
        got.pop(special, None)
    missing = Counter({i: 3 * n for i, n in want.items()})
    missing.subtract(got)
    assert sum(missing.values()) == 3 * lost
    assert min(missing.values()) >= 0


def test_shards_depend_on_seed_and_input_only(tmp_path, tokenizer, small_spans):
    corpus = write_corpus(tmp_path / "corpus.txt")
    outputs = {}
    for name, workers, seed in (("one", 1, 5), ("two", 2, 5), ("three", 3, 5), ("other", 1, 6)):
        (tmp_path / name).mkdir()
        _, paths = make(tmp_path / name, tokenizer, workers=workers, corpus=corpus, seed=seed)
        outputs[name] = b"".join(path.read_bytes() for path in paths)
        assert not list((tmp_path / name).glob("*.partial"))
    assert outputs["one"] == outputs["two"] == outputs["three"]
    assert outputs["one"] != outputs["other"]


def multiset(paths):
    return Counter(r for path in paths for r in (lambda f: f.read(np.arange(len(f))))(RecordFile(path)))


def test_number_of_files_changes_nothing_but_the_dealing(tmp_path, tokenizer, small_spans):
    corpus = write_corpus(tmp_path / "corpus.txt")
    manifest, one = make(tmp_path, tokenizer, corpus=corpus)
    n = manifest["num_examples"]
    a, b, c = (tmp_path / f"{name}.tfrecord" for name in "abc")
    for output, count in (
        (Output((a,), num_shards=3), 3),
        (Output((b,), shard_size=7), -(-n // 7)),
        (Output((c, tmp_path / "d.tfrecord")), 2),
    ):
        manifest, paths = make(tmp_path, tokenizer, output=output, corpus=corpus)
        assert len(paths) == count
        sizes = [shard["examples"] for shard in manifest["shards"]]
        # Shards are dealt to within one piece of one another, and are as they are listed.
        assert max(sizes) - min(sizes) <= 1 + 2000 // 40
        assert sizes == [len(RecordFile(path)) for path in paths]
        assert multiset(paths) == multiset(one)
    assert [path.name for path in sorted(tmp_path.glob("a-*"))] == [f"a-{i:05d}-of-00003.tfrecord" for i in range(3)]


def test_shorter_run_removes_the_shards_of_the_longer_one(tmp_path, tokenizer):
    for count in (3, 2):
        make(tmp_path, tokenizer, output=Output((tmp_path / "a.tfrecord",), num_shards=count))
    assert [path.name for path in sorted(tmp_path.glob("a-*"))] == [f"a-{i:05d}-of-00002.tfrecord" for i in range(2)]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(1, 9))
def test_deal_gives_every_example_to_one_piece_and_pieces_equal_shares(sizes, num_pieces):
    deal = pieces.Deal(tuple((i // 2, i % 2, size) for i, size in enumerate(sizes)), num_pieces)
    got = [list(deal.slices(piece)) for piece in range(num_pieces)]
    taken = sorted((2 * span + k, i) for slices in got for span, k, begin, end in slices for i in range(begin, end))
    assert taken == [(number, i) for number, size in enumerate(sizes) for i in range(size)]
    totals = [sum(end - begin for *_, begin, end in slices) for slices in got]
    assert max(totals) - min(totals) <= 1


def test_length_of_segments_changes_the_order_only(tmp_path, tokenizer, monkeypatch):
    """A span of any length, such as one compressed file, is kept in memory in parts."""
    corpus = write_corpus(tmp_path / "corpus.txt")
    monkeypatch.setattr(examples, "BLOCK_CHARACTERS", 300)
    _, one = make(tmp_path, tokenizer, name="one.tfrecord", corpus=corpus)
    monkeypatch.setattr(spans, "SEGMENT_TOKENS", 500)
    _, many = make(tmp_path, tokenizer, name="many.tfrecord", corpus=corpus)
    assert multiset(one) == multiset(many)


def test_examples_are_shuffled_over_the_whole_output(tmp_path, tokenizer, small_spans):
    corpus = tmp_path / "corpus.txt"
    # The first half of the corpus speaks of other things than the second.
    corpus.write_text("北京北京。\n今天今天。\n\n" * 200 + "学习学习。\n语言语言。\n\n" * 200, encoding="utf-8")
    _, paths = make(tmp_path, tokenizer, corpus=corpus, masking=Masking(0, 1))
    second = (read(paths)["input_ids"] == VOCABULARY.index("学")).any(axis=1)
    blocks = np.array_split(second, 10)
    assert all(0.3 < block.mean() < 0.7 for block in blocks)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives(tmp_path, tokenizer, objective):
    corpus = write_corpus(tmp_path / "corpus.txt")
    if OBJECTIVES[objective].text == "pairs":
        sentences = [line for line in corpus.read_text(encoding="utf-8").splitlines() if line]
        corpus.write_text("".join(f"{line}\t{line}\n" for line in sentences), encoding="utf-8")
    manifest, paths = make(tmp_path, tokenizer, objective=objective, corpus=corpus)
    examples = read(paths)
    num_labels = manifest["num_pair_labels"]
    if manifest["form"] == "one_row":
        assert set(np.unique(examples["next_sentence_labels"])) == set(range(num_labels))
        num_segments = PAIRINGS[OBJECTIVES[objective].pairing].num_segments
        assert examples["segment_ids"].any() == (num_segments > 1)
    else:
        assert num_labels == 1
        assert not examples.get("segment_ids", np.zeros(1)).any()


def test_whole_words_stay_whole_in_the_records(tmp_path, tokenizer):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("今天我们学习中华人民共和国，一心一意。\n" * 8, encoding="utf-8")
    _, paths = make(tmp_path, tokenizer, corpus=corpus, max_seq_length=64, masking=Masking(0.3, 20), dupe_factor=20)
    examples = read(paths)
    country = [VOCABULARY.index(c) for c in "中华人民共和国"]
    hidden_countries = 0
    for i in range(len(examples["input_ids"])):
        ids, count = examples["input_ids"][i].copy(), int(examples["masked_lm_weights"][i].sum())
        positions = examples["masked_lm_positions"][i, :count]
        ids[positions] = examples["masked_lm_ids"][i, :count]
        for at in range(len(ids) - 6):
            if ids[at : at + 7].tolist() == country:
                hidden = np.isin(np.arange(at, at + 7), positions)
                assert hidden.all() or not hidden.any()
                hidden_countries += hidden.all()
    assert hidden_countries > 0


def test_truncated_first_word_of_a_segment_is_a_word():
    tokens = np.asarray([10, 11, 12, 13, 14, 15], np.uint16) * 2
    one = np.ones(1, np.int64)
    pairs = Pairs(0 * one, 2 * one, 3 * one, 3 * one, one)
    segments = join_pairs(tokens, pairs, Template.of_bert(2, 3), 2, 10)
    assert segments.ids.tolist() == [[2, 10, 11, 3, 13, 14, 15, 3, 0, 0]]
    assert segments.word_starts.astype(int).tolist() == [[1, 1, 0, 1, 1, 0, 0, 1, 0, 0]]
    assert segments.bounds.tolist() == [[0, 4, 8]]


def test_pairs_in_xlmr_s_template():
    tokens = np.asarray([10, 11, 12, 13, 14, 15], np.uint16) * 2
    one = np.ones(1, np.int64)
    template = Template.of_roberta(0, 2)
    pairs = Pairs(0 * one, 2 * one, 3 * one, 3 * one, one)
    segments = join_pairs(tokens, pairs, template, 2, 10)
    assert segments.ids.tolist() == [[0, 10, 11, 2, 2, 13, 14, 15, 2, 0]]
    assert segments.word_starts.astype(int).tolist() == [[1, 1, 0, 1, 1, 1, 0, 0, 1, 0]]
    assert segments.bounds.tolist() == [[0, 5, 9]]
    alone = join_pairs(tokens, pairs, template, 1, 10)
    assert alone.ids.tolist() == [[0, 10, 11, 2, 0, 0, 0, 0, 0, 0]]
    assert alone.bounds.tolist() == [[0, 4, 4]]


def test_labels_of_albert_zh(tmp_path, tokenizer):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("今天我们学习。\n北京天气很好。\n" * 5, encoding="utf-8")
    _, paths = make(tmp_path, tokenizer, corpus=corpus, albert_zh_labels=True, dupe_factor=10)
    examples = read(paths)
    labels = tokenizer.tokens(examples["masked_lm_ids"][examples["masked_lm_weights"] > 0].tolist())
    assert set(labels) >= {"今", "##天", "北", "##京"}
    assert "##今" not in labels


def test_nothing_to_make_examples_of(tmp_path, tokenizer):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n \n", encoding="utf-8")
    with pytest.raises(UsageError, match="no example could be made: 0 documents"):
        make(tmp_path, tokenizer, corpus=corpus)


def test_documents_of_one_word_cannot_be_paired(tmp_path, tokenizer):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("今\n\n天\n", encoding="utf-8")
    with pytest.raises(UsageError, match="=structbert pairs sentences, but all 2 documents in the input are of one"):
        make(tmp_path, tokenizer, corpus=corpus, objective="structbert")
    make(tmp_path, tokenizer, corpus=corpus, objective="masked_lm")


def test_another_plan_starts_anew(tmp_path, tokenizer):
    work = Output((tmp_path / "x.tfrecord",)).work_path
    work.mkdir()
    (work / "plan.json").write_text('{"recipe": {}}')
    (work / "span-000000.json").write_text(json.dumps({"files": {}, "counts": {"examples": 1}, "seconds": {}}))
    manifest, _ = make(tmp_path, tokenizer)
    assert manifest["num_examples"] > 1


KILL_SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from data import examples
from data.recipe import Recipe
from data.writing import local, pieces
from data.writing.output import Output
from data.masking import Masking
from data.tokenizers.wordpiece import WordPieceTokenizer
examples.SMALLEST_SPAN_BYTES, pieces.PIECE_TOKENS, examples.BLOCK_CHARACTERS = 2000, 2000, 300
corpus, output, vocabulary, workers = sys.argv[2:]
recipe = Recipe("albert", Masking(0.15, 6), False, True, "rjieba", 40, 2, 0.1, 5)
local.create_examples(
    [Path(corpus)], Output((Path(output),), num_shards=3), recipe,
    WordPieceTokenizer.load(Path(vocabulary), do_lower_case=True), num_workers=int(workers),
    report=lambda stage, done, total: print(stage, done, flush=True),
)
print("finished", flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment_and_continued_gives_the_same_bytes(tmp_path, vocab_file):
    corpus = write_corpus(tmp_path / "corpus.txt", documents=120)
    draw = random.Random(1)

    def start(folder, workers):
        arguments = [str(ROOT), str(corpus), str(tmp_path / folder / "x.tfrecord"), str(vocab_file), str(workers)]
        return subprocess.Popen(
            [sys.executable, "-c", KILL_SCRIPT, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def shards(folder):
        return [(path.name, path.read_bytes()) for path in sorted((tmp_path / folder).glob("*.tfrecord"))]

    undisturbed = start("whole", 1)
    lines = undisturbed.communicate()[0].splitlines()
    assert lines[-1] == "finished"
    kills, line = 0, ""
    for _ in range(40):
        process = start("killed", draw.choice([1, 2]))
        assert process.stdout is not None
        # After so many reports, and a moment, so that the kill hits anything that a worker does.
        for _ in range(draw.randint(1, 1 + len(lines) // 4)):
            line = process.stdout.readline()
        time.sleep(draw.random() * 0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if line.startswith("finished") or (tmp_path / "killed" / "x.manifest.json").exists():
            break
    final = start("killed", 2)
    assert "finished" in final.communicate()[0]
    assert kills >= 3
    assert shards("killed") == shards("whole")


def test_keys_do_not_depend_on_the_order_of_reading(tmp_path, tokenizer):
    """What Beam relies on: a span alone yields the examples that it yields among others."""
    corpus = write_corpus(tmp_path / "corpus.txt")
    vocabulary = Vocabulary.of(tokenizer)
    size = corpus.stat().st_size
    spans = [Span(corpus, 0, size // 2), Span(corpus, size // 2, size)]
    forwards = [list(read_blocks(span, i, recipe(), tokenizer, vocabulary)) for i, span in enumerate(spans)]
    alone = list(read_blocks(spans[1], 1, recipe(), tokenizer, vocabulary))
    for a, b in zip(forwards[1], alone, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_array_equal(a.pairs.first_start, b.pairs.first_start)


def test_expand_inputs_of_nothing_is_one_line(tmp_path):
    with pytest.raises(UsageError, match="no file matches"):
        expand_inputs(str(tmp_path / "none*.txt"))


@pytest.mark.parametrize("dynamic", [False, True])
def test_packed_examples_hold_the_sequences_of_unpacked_ones(tmp_path, tokenizer, dynamic):
    def sequences(**changes):
        folder = tmp_path / str(changes)
        folder.mkdir()
        corpus = write_corpus(tmp_path / "corpus.txt")
        changes = {
            "objective": "masked_lm",
            "masking": Masking(0, 1),
            "max_seq_length": 64,
            "dynamic": dynamic,
            **changes,
        }
        manifest, paths = make(folder, tokenizer, corpus=corpus, **changes)
        (batch,) = PretrainingDataset(list(map(str, paths)), 1).evaluation_batches(manifest["num_examples"])
        found = Counter()
        for i in range(manifest["num_examples"]):
            numbers = batch["sequence_ids"][i] if changes.get("form") else batch["input_mask"][i]
            for number in range(1, int(numbers.max()) + 1):
                sequence = batch["input_ids"][i][numbers == number].tolist()
                assert (sequence[0], sequence[-1]) == (tokenizer.cls_id, tokenizer.sep_id)
                found[tuple(sequence)] += 1
        return found, manifest

    (apart, manifest_apart), (packed, manifest_packed) = sequences(), sequences(form="packed")
    assert apart == packed
    assert manifest_packed["num_examples"] < manifest_apart["num_examples"]


def test_masks_of_packed_examples_keep_off_the_specials(tmp_path, tokenizer):
    manifest, paths = make(
        tmp_path, tokenizer, objective="masked_lm", form="packed", max_seq_length=64, masking=Masking(0.3, 20, ngram=3)
    )
    batch = read(paths)
    assert (batch["input_ids"] == tokenizer.cls_id).sum() > manifest["num_examples"]
    assert not np.isin(batch["masked_lm_ids"][batch["masked_lm_weights"] > 0], list(tokenizer.special_ids)).any()
    row, slot = np.nonzero(batch["masked_lm_weights"])
    numbers = sequence_ids(batch["input_ids"], batch["input_mask"], tokenizer.cls_id)
    assert len(np.unique(numbers[row, batch["masked_lm_positions"][row, slot]])) > 1
