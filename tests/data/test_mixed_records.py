"""The records of several objectives: each its own, in its share of the steps, marked, in languages as ever."""

from __future__ import annotations

import dataclasses
import io
import types
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError

import create_pretraining_data
from commands.flags import parse
from commands.records import AllRecords, open_records
from data.mixture import mark_of, unmarked
from data.objectives import OBJECTIVES, same_records
from data.reading import PretrainingDataset

WORDS = "abcdefghijklmnop"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "一", "二", "三", "四", "五", "六"]
OBJECTIVES_MADE = {
    "masked_lm": "en=story.en,zh=story.zh",
    "tlm": "en-zh=t.en:t.zh",
    "veco": "en=story.en,en-zh=t.en:t.zh",
    "albert": "story.en",
    "camlm": "en-zh=t.en:t.zh,de-en=t.zh:t.en",
    "btmlm": "en=story.en,zh=story.zh",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
        Path("other.txt").write_text("\n".join([*VOCABULARY, "q"]) + "\n", encoding="utf-8")
        for code, letters in (("en", WORDS), ("zh", "一二三四五六")):
            draw = np.random.default_rng(len(letters))
            lines = [" ".join(draw.choice([*letters], 3 + n % 3)) for n in range(60)]
            paragraphs = ["\n".join(lines[n : n + 4]) for n in range(0, 60, 4)]
            Path(f"story.{code}").write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
            Path(f"t.{code}").write_text("\n".join(lines[:40]) + "\n", encoding="utf-8")
        for objective, text in OBJECTIVES_MADE.items():
            make(objective, text, f"{objective}/x.tfrecord")
        make("tlm", OBJECTIVES_MADE["tlm"], "other/x.tfrecord", vocab_file="other.txt")
        make("tlm", OBJECTIVES_MADE["tlm"], "whole/x.tfrecord", eval_fraction=0)
        make("masked_lm", "story.en", "bare/b.tfrecord", eval_fraction=0, masking="static")
        Path("bare/b.manifest.json").unlink()
    return folder


def make(objective: str, text: str, output: str, **flags: Any) -> None:
    given = {
        "input_file": text,
        "output_file": output,
        "vocab_file": "vocab.txt",
        "objective": objective,
        "masking": "dynamic",
        "max_seq_length": 24 if objective == "tlm" else 16,
        "max_predictions_per_seq": 4,
        "dupe_factor": 2,
        "eval_fraction": 0.3,
        "num_workers": 1,
        **flags,
    }
    options = parse(create_pretraining_data.Options, [f"--{name}={value}" for name, value in given.items()])
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        create_pretraining_data.main(options)


@pytest.fixture
def folder(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def records(shares: dict[str, float], *files: str, **flags: Any) -> AllRecords:
    given = {"input_file": files, "eval_input_file": (), "do_eval": True, "seed": 5, "pooled_loss": False}
    languages = {"language_alpha": 0.5, "parallel_share": None, "language_signal": False, "pseudo_language": None}
    sizes = {"train_batch_size": 4, "eval_batch_size": 4, "max_seq_length": None, "max_predictions_per_seq": None}
    objective = ",".join(shares)
    return open_records(
        types.SimpleNamespace(**{**given, **languages, **sizes, **flags}, shares=shares, objective=objective)
    )


HALVES = {"masked_lm": 0.5, "tlm": 0.5}
BOTH = ("masked_lm/*.tfrecord", "tlm/*.tfrecord")


@pytest.mark.parametrize("masked", [0.5, 0.75, 0.9])
def test_each_objective_has_its_share_and_learns_from_what_was_made_for_it(folder: Path, masked: float):
    found = records({"masked_lm": masked, "tlm": 1 - masked}, *BOTH)
    assert {name: part.training.manifest["objective"] for name, part in found.parts.items() if part.training.manifest} \
        == {"masked_lm": "masked_lm", "tlm": "tlm"}  # fmt: skip
    mixture = found.mixture((0, 1), 4, seed=5)
    counts, languages = Counter(), Counter()
    for step in range(120):
        batch = mixture.batch(step)
        objective, plain = unmarked(batch)
        counts[objective] += 1
        assert plain["input_ids"].shape == (4, 24 if objective == "tlm" else 16)
        assert batch.keys() - plain.keys() == {f"member:{objective}"}
        if objective == "masked_lm":
            # Some tokens are replaced by any others.
            ids = plain["input_ids"][plain["input_ids"] > 4]
            languages["zh" if (ids >= 21).mean() > 0.5 else "en"] += 1
        assert all(abs(counts[name] - share * (step + 1)) <= 1 for name, share in found.shares.items())
    drawn = found.parts["masked_lm"].shares
    assert all(abs(languages[name] - share * counts["masked_lm"]) <= 1 for name, share in drawn.items())
    halves = [found.mixture((part, 2), 4, seed=5).batch(7) for part in (0, 1)]
    for feature, value in mixture.batch(7).items():
        np.testing.assert_array_equal(value, np.concatenate([half[feature] for half in halves]))


def test_languages_are_said_of_every_text_and_of_what_is_to_be_written(folder: Path):
    shares = {"masked_lm": 0.2, "camlm": 0.4, "btmlm": 0.4}
    files = [f"{name}={name}/*.tfrecord" for name in shares]
    said = records(shares, *files, language_signal=True)
    assert said.signal == ("de", "en", "zh")
    assert not said.parts["masked_lm"].signal
    pairs, quiet = Counter(), records(shares, *files).mixture((0, 1), 4, seed=5)
    mixture = said.mixture((0, 1), 4, seed=5)
    for step in range(80):
        batch, before = mixture.batch(step), quiet.batch(step)
        added = batch.keys() - before.keys()
        assert added == (set() if mark_of(batch) == "masked_lm" else {"language_ids", "other_language_ids"})
        for name, value in before.items():
            np.testing.assert_array_equal(batch[name], value)
        if added:
            numbers = zip(batch["language_ids"].tolist(), batch["other_language_ids"].tolist(), strict=True)
            pairs.update((mark_of(batch), *(said.signal[number] for number in pair)) for pair in numbers)
    of_camlm = {("camlm", "en", "zh"), ("camlm", "de", "en")}
    asked = {("btmlm", "en", "de"), ("btmlm", "en", "zh"), ("btmlm", "zh", "de"), ("btmlm", "zh", "en")}
    assert pairs.keys() == of_camlm | asked
    named = records({"btmlm": 1.0}, "btmlm/*.tfrecord", language_signal=True, pseudo_language="zh").first
    # A text of the named language asks for another.
    assert {text: (each.own, each.others) for text, each in named.said.items()} == {"en": (0, (1,)), "zh": (1, (0,))}
    halves = [mixture, *(said.mixture((part, 2), 4, seed=5) for part in (0, 1))]
    whole, *parts = (each.batch(7) for each in halves)
    for feature, value in whole.items():
        np.testing.assert_array_equal(value, np.concatenate([part[feature] for part in parts]))


def test_one_objective_reads_what_it_always_read(folder: Path):
    for name, files in (("tlm", "tlm/*.tfrecord"), ("masked_lm", "masked_lm=masked_lm/x.en*.tfrecord")):
        found = records({name: 1.0}, files)
        alone = PretrainingDataset(f"{name}/x{'.en' * (name != 'tlm')}.tfrecord", 4, seed=5)
        for step in (0, 3, 40):
            batch = found.mixture((0, 1), 4, seed=5).batch(step)
            assert mark_of(batch) == ""
            for feature, value in alone.batch(step).items():
                np.testing.assert_array_equal(batch[feature], value)


def test_held_out_records_are_matched_and_masked_as_without_others(folder: Path):
    found, alone = records(HALVES, *BOTH), records({"tlm": 1.0}, "tlm/*.tfrecord")
    one, other = (each.parts["tlm"].held_out for each in (found, alone))
    assert one is not None
    assert other is not None
    for batch, same in zip(one.evaluation_batches(4), other.evaluation_batches(4), strict=True):
        np.testing.assert_array_equal(batch["input_ids"], same["input_ids"])
    given = records(HALVES, *BOTH, eval_input_file=("tlm=tlm/x.tfrecord", "masked_lm/*held_out.tfrecord"))
    assert [path.as_posix() for path in given.paths(held_out=True)] == [
        "masked_lm/x.en.held_out.tfrecord",
        "masked_lm/x.zh.held_out.tfrecord",
        "tlm/x.tfrecord",
    ]


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch) -> None:
    row: Any = OBJECTIVES
    twin = dataclasses.replace(OBJECTIVES["masked_lm"], paper="nobody's", summary="the same", losses=("both_sides",))
    monkeypatch.setitem(row, "twin", twin)


@pytest.mark.usefixtures("twin")
def test_objectives_may_share_records_and_read_them_in_orders_of_their_own(folder: Path):
    assert same_records("masked_lm", "twin")
    assert not same_records("masked_lm", "tlm")
    assert not same_records("masked_lm", "no row")
    for files in (("masked_lm/x.en*.tfrecord",), tuple(f"{n}=masked_lm/x.en*.tfrecord" for n in ("masked_lm", "twin"))):
        found = records({"masked_lm": 0.5, "twin": 0.5}, *files)
        one, other = (part.training for part in found.parts.values())
        assert one.paths == other.paths
        assert not np.array_equal(one.batch(0)["input_ids"], other.batch(0)["input_ids"])
        assert len(found.paths()) == 1
    assert records({"twin": 1.0}, "masked_lm/x.en*.tfrecord").first.objective == "twin"
    # What is named is read by the named one alone.
    with pytest.raises(UsageError, match="no records of twin; expected some for each of masked_lm, twin"):
        records({"masked_lm": 0.5, "twin": 0.5}, "masked_lm=masked_lm/x.en*.tfrecord")


def test_flags_of_languages_hold_for_the_objectives_that_have_several(folder: Path):
    files = ("veco/*.tfrecord", "tlm/*.tfrecord")
    shares = {"tlm": 0.5, "veco": 0.5}
    found = records(shares, *files, parallel_share=0.25)
    assert found.parts["veco"].shares == pytest.approx({"en-zh": 0.25, "en": 0.75})
    assert found.parts["tlm"].shares == {}
    with pytest.raises(UsageError, match=r"--parallel_share=0.25: the records are of en, zh; en-zh language; expected"):
        records(HALVES, *BOTH, parallel_share=0.25)
    with pytest.raises(UsageError, match=r"--language_alpha=0.7 but the records are of one language"):
        records({"tlm": 0.5, "albert": 0.5}, "tlm/*.tfrecord", "albert/*.tfrecord", language_alpha=0.7)


@pytest.mark.parametrize(
    ("shares", "files", "said"),
    [
        (HALVES, ["masked_lm/*.tfrecord"], "--input_file: no records of tlm; expected some for each of masked_lm, tlm"),
        (HALVES, [*BOTH, "albert/*.tfrecord"], "was made with --objective=albert, which is none of masked_lm, tlm: "),
        (HALVES, [*BOTH, "bare/*.tfrecord"], "bare/b.tfrecord has no manifest that says .* as masked_lm=bare/b.tfrec"),
        (
            HALVES,
            ["masked_ml=masked_lm/*.tfrecord"],
            "'masked_ml' is no objective of this run; the nearest is masked_lm",
        ),
        (HALVES, ["en=masked_lm/*.tfrecord"], "'en' is no objective of this run; .* of --objective, masked_lm, tlm"),
        (HALVES, ["veco=veco/*.tfrecord", *BOTH], "'veco' is no objective of this run"),
        (
            HALVES,
            ["tlm=veco/*.tfrecord", "masked_lm/*.tfrecord"],
            "were made with --objective=veco, whose examples tlm",
        ),
        (HALVES, ["tlm=nowhere/*.tfrecord", "masked_lm/*.tfrecord"], "nowhere/.*: no record file matches"),
        (HALVES, ["masked_lm/*.tfrecord", "other/*.tfrecord"], "give --input_file shards of one vocabulary"),
        (HALVES, ["masked_lm/*.tfrecord", "whole/*.tfrecord"], "--do_eval: none of tlm of .* is held out"),
        (HALVES, ["masked_lm/*.tfrecord", "tlm/*held_out.tfrecord"], "all of tlm of .* is held out"),
        ({"tlm": 1.0}, ["masked_lm/x.en.tfrecord"], "--objective=tlm but the records were made with --objective=mask"),
        ({"veco": 1.0}, ["bare/*.tfrecord"], "--objective=veco reads examples of the form two_sides, but bare/b.tfrec"),
    ],
)
def test_files_that_do_not_match_are_one_line(folder: Path, shares: dict[str, float], files: list[str], said: str):
    bare = {"do_eval": False} if files == ["bare/*.tfrecord"] or shares == {"tlm": 1.0} else {}
    with pytest.raises(UsageError, match=said) as error:
        records(shares, *files, **bare)
    assert "\n" not in str(error.value)


def test_each_objective_has_its_own_length(folder: Path):
    with pytest.raises(
        UsageError, match=r"--max_seq_length=16 but the records of tlm have max_seq_length=24: leave it"
    ):
        records(HALVES, *BOTH, max_seq_length=16)
    assert records(HALVES, *BOTH).max_seq_length == 24


def test_what_is_named_may_have_no_manifest(folder: Path):
    found = records(HALVES, "masked_lm=bare/b.tfrecord", "tlm/*.tfrecord", do_eval=False)
    assert found.parts["masked_lm"].training.manifest is None
    # A file that has such a name is found as it is.
    Path("tlm=odd.tfrecord").write_bytes(Path("bare/b.tfrecord").read_bytes())
    with pytest.raises(UsageError, match=r"tlm=odd\.tfrecord has no manifest"):
        records(HALVES, "tlm=odd.tfrecord", *BOTH)
    Path("tlm=odd.tfrecord").unlink()


def test_only_rows_that_make_the_same_examples_share_records():
    alike = {one for one in OBJECTIVES for other in OBJECTIVES if one != other and same_records(one, other)}
    assert not alike & {"structbert", "structbert_2way", "palm", "plug", "albert", "bert", "tlm", "veco"}
