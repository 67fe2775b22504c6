"""Two-sided examples: what is masked of a text depends on that text alone, no token is lost, pairs stay pairs."""

from __future__ import annotations

import io
import json
import shutil
import types
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st

import create_pretraining_data
import inspect_records
from commands.flags import parse
from commands.records import open_records
from data.forms import FORMS, Segments
from data.forms.sides import original_ids
from data.languages import mixed_shares
from data.masking import Masking, MaskVocabulary
from data.pairing import PAIRINGS, Block, chunk_and_pair
from data.randomness import keys
from data.reading import PretrainingDataset
from data.recipe import Recipe, Specials
from data.tfrecord.frames import MalformedRecordError
from data.translations import translations

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnop", "一", "二", "三", "四", "五", "六"]
FORM = FORMS["two_sides"]
SPANS = ("first_start", "first_length", "second_start", "second_length")
MASKED = MaskVocabulary(4, np.arange(5, 27, dtype=np.int32), np.arange(27) < 5)


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {"masking": Masking(0.3, 4), "dynamic": False, "max_seq_length": 12, **changes}
    return Recipe("veco", whole_word=False, segmenter="none", dupe_factor=1, short_seq_prob=0.1, seed=1, **values)


def segments(texts: list[tuple[list[int], list[int]]]) -> Segments:
    """Return examples of pairs of ids, each text in its specials."""
    rows = [([2, *a, 3], [2, *b, 3]) for a, b in texts]
    ids = np.zeros((len(rows), 24), np.int32)
    for row, (a, b) in enumerate(rows):
        ids[row, : len(a) + len(b)] = a + b
    bounds = np.asarray([[0, len(a), len(a) + len(b)] for a, b in rows])
    return Segments(ids, ids > 0, bounds, np.zeros(len(rows), np.int64))


texts = st.lists(st.integers(5, 26), min_size=1, max_size=10)
pairs_of_texts = st.lists(st.tuples(texts, texts), min_size=1, max_size=6)


# -- the form ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(pairs_of_texts, st.integers(0, 2**32))
def test_both_sides_keep_their_tokens_and_are_masked_to_their_budgets(examples, seed: int):
    features = FORM.features(segments(examples), keys(seed, np.arange(len(examples))), recipe(), Specials(2), MASKED)
    assert [*features] == [feature.name for feature in FORM.schema]
    assert not any(wrong.any() for wrong in FORM.problems(features, None).values())
    for number, side in enumerate(FORM.sides):
        before = original_ids(features, side)
        for row, example in enumerate(examples):
            expected = [2, *example[number], 3]
            assert before[row].tolist() == expected + [0] * (12 - len(expected))
            assert features[side.mask][row].sum() == len(expected)
            budget = recipe().masking.budget_tokens(np.asarray([len(expected)]))[0]
            assert features[f"{side.hidden}_weights"][row].sum() == min(budget, len(example[number]))


@settings(max_examples=40, deadline=None)
@given(pairs_of_texts, st.data(), st.integers(0, 2**32))
def test_the_mask_of_a_text_says_nothing_of_the_other(examples, data, seed: int):
    """Another second text leaves every feature of the first as it is, and the other way round."""
    others = data.draw(st.lists(st.tuples(texts, texts), min_size=len(examples), max_size=len(examples)))
    keys_N = keys(seed, np.arange(len(examples)))
    mixed = [(a, d) for (a, _), (_, d) in zip(examples, others, strict=True)]
    one, two, both = (
        FORM.features(segments(each), keys_N, recipe(), Specials(2), MASKED) for each in (examples, others, mixed)
    )
    for name, value in both.items():
        np.testing.assert_array_equal(value, (two if name.startswith("other_") else one)[name], err_msg=name)


def test_the_same_text_on_both_sides_is_masked_independently():
    example = [(list(range(5, 15)), list(range(5, 15)))] * 4000
    features = FORM.features(segments(example), keys(3, np.arange(4000)), recipe(), Specials(2), MASKED)
    chosen = [features[f"{side.hidden}_positions"] for side in FORM.sides]
    # 4 of 10 positions each: of the first's, the second has 4 in 10 by chance.
    shared = np.mean([len({*a} & {*b}) / 4 for a, b in zip(*map(np.ndarray.tolist, chosen), strict=True)])
    assert abs(shared - 0.4) < 0.015


@given(pairs_of_texts)
def test_a_text_of_segments_is_itself(examples):
    whole = segments(examples)
    for number in (0, 1):
        text = whole.text(number, 12, "a text")
        for row, example in enumerate(examples):
            found = text.ids[row][: text.lengths[row]].tolist()
            assert found == [2, *example[number], 3]
            assert not text.ids[row][text.lengths[row] :].any()
    longest = max(len(a) for a, _ in examples) + 2
    with pytest.raises(MalformedRecordError, match=f"a text of {longest} tokens, for rows of {longest - 1}"):
        whole.text(0, longest - 1, "a text")


def test_a_recipe_says_what_it_cannot_do():
    for changes, said in (
        ({"text": "pairs", "form": "packed"}, "--pack_sequences needs --objective=masked_lm: with veco an example is"),
        ({"word_order": create_pretraining_data.word_order(options(trigram_rate=0.1))}, "--trigram_rate=0.1"),
    ):
        with pytest.raises(UsageError, match=said):
            recipe(**changes)
    with pytest.raises(UsageError, match=r"--objective=albert learns from documents: .*--objective=camlm, tlm, veco"):
        create_pretraining_data.jobs_of(options(objective="albert", input_file=(f"{__file__}:{__file__}",)))


# -- pairs and adjacent segments ---------------------------------------------------------------------------------------


def block(lengths: list[list[int]]) -> Block:
    ends = np.cumsum([len(document) for document in lengths])
    sentences = np.concatenate([[0], np.cumsum(np.concatenate([*map(np.asarray, lengths)]))]).astype(np.int64)
    return Block(sentences, np.concatenate([[0], ends[:-1]]), ends)


documents = st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=12), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(documents, st.integers(4, 40), st.integers(0, 100))
def test_adjacent_segments_follow_one_another_and_cover_every_token_once(lengths, max_tokens: int, seed: int):
    whole = block(lengths)
    pairs = chunk_and_pair(
        whole,
        PAIRINGS["adjacent"],
        num_passes=1,
        max_tokens=max_tokens,
        short_seq_prob=0.2,
        random=np.random.Generator(np.random.PCG64(seed)),
    )
    assert (pairs.first_start + pairs.first_length == pairs.second_start).all()
    assert (pairs.first_length > 0).all()
    assert (pairs.second_length > 0).all()
    assert not pairs.label.any()
    order = np.argsort(pairs.first_start)
    begins, ends = pairs.first_start[order], (pairs.second_start + pairs.second_length)[order]
    np.testing.assert_array_equal(begins, np.concatenate([[0], ends[:-1]]))
    assert ends[-1] == whole.sentences[-1]
    assert np.isin(pairs.second_start, whole.sentences).all()
    # No other boundary between two sentences is nearer to the middle.
    for first, middle, last in zip(begins, pairs.second_start[order], ends, strict=True):
        inner = whole.sentences[(whole.sentences > first) & (whole.sentences < last)]
        assert abs(2 * middle - first - last) == np.abs(2 * inner - first - last).min()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12), st.integers(1, 3), st.booleans()
)
def test_pairs_stay_pairs_and_keep_their_beginnings(lengths, passes: int, drops: bool):
    whole = block([list(pair) for pair in lengths])
    left, pairs, cut, counts = translations(
        whole,
        PAIRINGS["adjacent"],
        num_passes=passes,
        max_tokens=10,
        apart=True,
        long_pairs="drop" if drops else "cut",
        random=np.random.Generator(np.random.PCG64(0)),
    )
    starts = np.cumsum([0, *(a + b for a, b in lengths)])
    good = [(starts[i], a, starts[i] + a, b) for i, (a, b) in enumerate(lengths) if a and b]
    long = [row for row in good if max(row[1], row[3]) > 5]
    kept = [row for row in good if not (drops and row in long)]
    found = [*zip(*(getattr(pairs, name).tolist() for name in SPANS), strict=True)]
    assert found == [(a, min(n, 5), b, min(m, 5)) for a, n, b, m in kept] * passes
    assert cut.tolist() == [max(n - 5, 0) + max(m - 5, 0) for _, n, _, m in kept] * passes
    assert counts == {"pairs_without_tokens": len(lengths) - len(good), "pairs_too_long": len(long)}
    assert left.num_documents == len(kept)


# -- the verbs ---------------------------------------------------------------------------------------------------------


def options(**flags: Any) -> create_pretraining_data.Options:
    given = {"input_file": ("x",), "output_file": ("x.tfrecord",), "vocab_file": "vocab.txt", "objective": "veco"}
    sizes = {"max_seq_length": 16, "max_predictions_per_seq": 3, "dupe_factor": 1, "num_workers": 1}
    return create_pretraining_data.Options(**{**given, **sizes, "accept_bad_text": True, **flags})


def make(**flags: Any) -> str:
    with redirect_stdout(io.StringIO()) as printed:
        create_pretraining_data.main(options(**flags))
    return printed.getvalue()


def inspected(action: str, *files: str) -> tuple[int, str]:
    arguments = [f"--action={action}", f"--input_file={','.join(files)}"]
    with redirect_stdout(io.StringIO()) as printed:
        code = inspect_records.main(parse(inspect_records.Options, arguments))
    return code, printed.getvalue()


ENGLISH = ["a b c d e", "f g", "h", "", "i j k l m n o p a b c d e f g h", "c d", "\u200b", "p"]
CHINESE = ["一二三", "四五", "六", "一", "二二", "", "三", "五六"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, rows in {"vocab.txt": VOCABULARY, "t.en": ENGLISH, "t.zh": CHINESE}.items():
        Path(name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    Path("t.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in zip(ENGLISH, CHINESE, strict=True)), encoding="utf-8")
    stories = [f"a b c d e\nf g h i\nj k\nl m n o {letter}\n\n" for letter in "abcdefghi"]
    story = ("".join(stories), "一二三四\n五六一\n二三\n四五六\n\n" * 3)
    for name, text in zip(("story.en", "story.zh"), story, strict=True):
        Path(name).write_text(text, encoding="utf-8")
    return tmp_path


def read(name: str) -> list[tuple[str, str]]:
    """Return the two texts of every example, without their specials."""
    found = []
    for batch in PretrainingDataset(name, 1).evaluation_batches(1):
        tokens = [original_ids(batch, side)[0][batch[side.mask][0] > 0] for side in FORM.sides]
        assert [(ids[0], ids[-1]) for ids in tokens] == [(2, 3)] * 2
        found.append(tuple("".join(VOCABULARY[i] for i in ids[1:-1]) for ids in tokens))
    return found


@pytest.mark.parametrize("masking", ["static", "dynamic"])
@pytest.mark.parametrize("given_as", ["t.en:t.zh", "en-zh=t.en:t.zh", "en-zh=t.tsv"])
def test_records_of_pairs_hold_the_pairs(folder, masking: str, given_as: str):
    printed = make(input_file=(given_as,), masking=masking)
    whole = [(a.replace(" ", "")[:14], b) for a, b in zip(ENGLISH, CHINESE, strict=True) if a and b and a != "\u200b"]
    assert Counter(read("x.tfrecord")) == Counter(whole)
    assert "3 pairs that lack a side and 0 that are too long were left out" in printed
    assert "cut      2 tokens from 1 examples" in printed
    manifest = json.loads(Path("x.manifest.json").read_bytes())
    assert manifest["recipe"]["language"] == ("en-zh" if "=" in given_as else "")
    assert manifest["lengths"] == {"tokens": 16, "predictions": 3}
    code, said = inspected("verify", "x.tfrecord")
    assert (code, "ok" in said) == (0, True), said
    _, said = inspected("show", "x.tfrecord")
    assert len(said.split("\n\n")[1].split("\n")) == 3
    _, said = inspected("stats", "x.tfrecord")
    assert "of 32" in said


def test_pairs_that_are_too_long_are_dropped_and_counted(folder):
    printed = make(input_file=("t.en:t.zh",), long_pairs="drop")
    assert "3 pairs that lack a side and 1 that are too long were left out" in printed
    assert len(read("x.tfrecord")) == 4
    Path("long.tsv").write_text("a b c d\t一\n\u200b\t一\nb\t一二三四\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"^--input_file: no example could be made of 3 pairs: 1 lack a side, 2 are"):
        make(input_file=("en-zh=long.tsv",), long_pairs="drop", max_seq_length=5, output_file=("y.tfrecord",))
    with pytest.raises(UsageError, match=r"--long_pairs=drop does nothing without pairs, as --input_file=FIRST:SECOND"):
        make(input_file=("story.en",), long_pairs="drop")


def test_several_languages_have_files_of_their_own_and_a_balance(folder):
    printed = make(input_file=("en=story.en", "zh=story.zh", "en-zh=t.en:t.zh"), output_file=("o/x.tfrecord",))
    names = ["en", "zh", "en-zh"]
    manifests = {name: json.loads(Path(f"o/x.{name}.manifest.json").read_bytes()) for name in names}
    assert {path.name for path in Path("o").glob("*.tfrecord")} == {f"x.{name}.tfrecord" for name in names}
    sizes = {name: manifest["num_examples"] for name, manifest in manifests.items()}
    raised = np.sqrt([sizes[name] for name in names])
    for manifest in manifests.values():
        assert [*manifest["languages"]] == names
        assert {name: row["examples"] for name, row in manifest["languages"].items()} == sizes
        drawn = [row["drawn"] for row in manifest["languages"].values()]
        np.testing.assert_allclose(drawn, raised / raised.sum())
    assert [line.split()[1] for line in printed.split("\n") if line.startswith("balance")] == names
    # Documents and pairs give records of one schema, which are read together.
    assert len({json.dumps(manifest["features"]) for manifest in manifests.values()}) == 1
    assert PretrainingDataset("o/*.tfrecord", 4).num_examples == sum(sizes.values())
    assert {a + b for a, b in read("o/x.zh.tfrecord")} == {"一二三四五六一二三四五六"}


def test_a_language_that_is_refused_leaves_nothing_of_the_others(folder):
    Path("empty").write_text("\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"^zh: --input_file: no example could be made"):
        make(input_file=("en=story.en", "zh=empty"), output_file=("o/x.tfrecord",), eval_fraction=0.4)
    assert not [path for path in Path("o").rglob("*") if path.is_file() and not path.name.startswith(".")]
    with pytest.raises(UsageError, match=r"--runner=DirectRunner makes the records of one language"):
        make(input_file=("en=story.en", "zh=story.zh"), runner="DirectRunner")


def test_a_command_that_was_killed_goes_on_with_the_languages_that_are_left(folder, monkeypatch):
    flags = {"input_file": ("en=story.en", "zh=story.zh"), "output_file": ("o/x.tfrecord",), "eval_fraction": 0.4}
    documents = [f"{a}{b}一\n{b}{a}" for a in "一二三四五" for b in "二三四五六"]
    Path("story.zh").write_text("\n\n".join(documents), encoding="utf-8")
    original, names = create_pretraining_data.make_here, {"x.en.tfrecord", "x.en.held_out.tfrecord"}

    def killed(options: Any, inputs: Any, recipe: Any, *further: Any) -> Any:
        if recipe.language == "zh" and not recipe.held_out:
            raise KeyboardInterrupt
        return original(options, inputs, recipe, *further)

    def kill_at_the_last_part() -> dict[str, int]:
        """Return when the files of the first language were written."""
        with monkeypatch.context() as patch:
            patch.setattr(create_pretraining_data, "make_here", killed)
            with pytest.raises(KeyboardInterrupt):
                make(**flags)
        return written()

    def written() -> dict[str, int]:
        return {name: Path(f"o/{name}").stat().st_mtime_ns for name in names}

    def content() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in Path("o").rglob("*") if path.is_file() and path.name[0] != "."}

    make(**flags)
    whole = content()
    assert not [*Path("o").glob("*.partial")]
    shutil.rmtree("o")
    before = kill_at_the_last_part()
    assert make(**flags).count("kept  ") == 3
    assert written() == before
    assert content() == whole
    # A command that ended begins anew, and so does a language whose file was changed since, or another recipe.
    before = kill_at_the_last_part()
    Path("o/x.en.tfrecord").write_bytes(b"")
    assert make(**flags).count("kept  ") == 2
    assert written()["x.en.tfrecord"] > before["x.en.tfrecord"]
    assert content() == whole
    kill_at_the_last_part()
    assert "kept  " not in make(**flags, random_seed=9)
    assert not [*Path("o").glob("*.partial")]
    # Where a text is refused nothing is left of the languages before it, whether they were made or found.
    kill_at_the_last_part()
    Path("story.zh").write_text("\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"^zh: --input_file: no example could be made"):
        make(**flags)
    assert not [*Path("o").glob("x.en*")]


# -- what a run learns from --------------------------------------------------------------------------------------------


def records(**flags: Any) -> Any:
    given = {"input_file": ("o/*.tfrecord",), "eval_input_file": (), "do_eval": False, "objective": "veco", "seed": 0}
    shares = {"language_alpha": 0.5, "parallel_share": None, "pooled_loss": False}
    sizes = {"train_batch_size": 4, "eval_batch_size": 4, "max_seq_length": None, "max_predictions_per_seq": None}
    given = {**given, **shares, **sizes, **flags}
    given |= {"language_signal": False}
    return open_records(types.SimpleNamespace(**given, shares={given["objective"]: 1.0})).first


def test_a_run_draws_languages_by_their_shares_and_every_batch_is_of_one(folder):
    make(input_file=("en=story.en", "zh=story.zh", "en-zh=t.en:t.zh"), output_file=("o/x.tfrecord",), dupe_factor=3)
    sizes = {name: PretrainingDataset(f"o/x.{name}.tfrecord", 1).num_examples for name in ("en-zh", "en", "zh")}
    for alpha, parallel in ((0.5, None), (1.0, None), (0.0, 0.5), (0.5, 0.25)):
        found = records(language_alpha=alpha, parallel_share=parallel)
        assert found.shares == pytest.approx(mixed_shares(sizes, alpha, parallel))
        mixture = found.mixture((0, 1), 4, seed=3)
        steps = 200
        drawn = Counter(mixture.at(step)[0] for step in range(steps))
        for name, share in found.shares.items():
            assert abs(drawn[name] - share * steps) <= 1
        for step in range(12):
            name, number = mixture.at(step)
            alone = PretrainingDataset(f"o/x.{name}.tfrecord", 4, seed=0).batch(number)
            for feature, value in mixture.batch(step).items():
                np.testing.assert_array_equal(value, alone[feature])
    assert records(parallel_share=1.0).shares == {"en-zh": 1.0}
    halves = [records().mixture((part, 2), 4, seed=3).batch(5) for part in (0, 1)]
    for feature, value in records().mixture((0, 1), 4, seed=3).batch(5).items():
        np.testing.assert_array_equal(value, np.concatenate([half[feature] for half in halves]))


def test_records_of_one_language_are_read_as_they_always_were(folder):
    make(input_file=("en=story.en",), output_file=("o/x.tfrecord",))
    found = records()
    assert (found.shares, found.drawn, [*found.training_languages]) == ({}, "", ["en"])
    assert found.scored == 4 * 3
    np.testing.assert_array_equal(
        found.mixture((0, 1), 4, 0).batch(2)["input_ids"], PretrainingDataset("o/x.tfrecord", 4).batch(2)["input_ids"]
    )
    with pytest.raises(UsageError, match=r"--language_alpha=0.7 but the records are of one language"):
        records(language_alpha=0.7)
    with pytest.raises(UsageError, match=r"--parallel_share=0.7: the records are of en language"):
        records(parallel_share=0.7)
    make(input_file=("story.zh",), output_file=("o/y.tfrecord",))
    with pytest.raises(
        UsageError, match=r"y.tfrecord is of a language that its manifest does not say, but .*x.tfrecord"
    ):
        records()
