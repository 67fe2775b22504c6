"""Records of two texts of one sequence: their specials, that all which is predicted is hidden, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st

import create_pretraining_data
from commands.flags import parse
from data.forms import FORMS, Segments, scored_per_prediction, texts_read
from data.forms.sides import original_ids
from data.masking import Masking, MaskVocabulary
from data.randomness import keys
from data.reading import PretrainingDataset
from data.recipe import Recipe, Specials

FORM = FORMS["halves"]
MASKED = MaskVocabulary(4, np.arange(5, 27, dtype=np.int32), np.arange(27) < 5)
ROOT = Path(__file__).resolve().parents[2]
TEXT = st.lists(st.integers(5, 26), min_size=1, max_size=10)


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {"masking": Masking(0.3, 4), "dynamic": False, "max_seq_length": 12, **changes}
    return Recipe("camlm", whole_word=False, segmenter="none", dupe_factor=1, short_seq_prob=0.1, seed=1, **values)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6), st.integers(0, 2**32))
def test_every_predicted_token_is_shown_as_mask(examples, seed: int):
    ids = np.zeros((len(examples), 24), np.int32)
    bounds = []
    for row, (a, b) in enumerate(examples):
        whole = [2, *a, 3, 3, *b, 3]
        ids[row, : len(whole)] = whole
        bounds.append([0, len(a) + 2, len(whole)])
    segments = Segments(ids, ids > 0, np.asarray(bounds), np.zeros(len(examples), np.int64))
    features = FORM.features(segments, keys(seed, np.arange(len(examples))), recipe(), Specials(2), MASKED)
    assert not any(wrong.any() for wrong in FORM.problems(features, None).values())
    for number, side in enumerate(FORM.sides):
        predicted = features[f"{side.hidden}_weights"] > 0
        shown = np.take_along_axis(features[side.ids], features[f"{side.hidden}_positions"], axis=1)
        assert (shown[predicted] == 4).all()
        assert (features[side.ids] == 4).sum() == predicted.sum()
        for row, example in enumerate(examples):
            expected = [3 if number else 2, *example[number], 3]
            assert original_ids(features, side)[row].tolist() == expected + [0] * (12 - len(expected))


def make(folder: Path, **flags: Any) -> dict[str, Any]:
    given = {
        "input_file": f"{ROOT}/data/samples/parallel/train.en:{ROOT}/data/samples/parallel/train.zh",
        "output_file": folder / "x.tfrecord",
        "vocab_file": ROOT / "albert_config/vocab.txt",
        "objective": "camlm",
        "max_seq_length": 24,
        "dupe_factor": 1,
        "num_workers": 1,
        **flags,
    }
    options = parse(create_pretraining_data.Options, [f"--{name}={value}" for name, value in given.items()])
    create_pretraining_data.main(options)
    return json.loads((folder / "x.manifest.json").read_text())


@pytest.mark.parametrize("masking", ["static", "dynamic"])
def test_rows_one_behind_the_other_are_a_pair_of_xlmr(tmp_path: Path, masking: str, capsys: pytest.CaptureFixture):
    manifest = make(tmp_path, masking=masking)
    assert (manifest["form"], texts_read(FORM), scored_per_prediction("camlm")) == ("halves", 2, 2)
    data = PretrainingDataset(str(tmp_path / "x.tfrecord"), 16)
    assert (data.max_seq_length, data.max_other_length, data.positions) == (24, 24, 48)
    batch = data.batch(0)
    cls = manifest["tokenizer"]["cls_id"]
    first, second = (original_ids(batch, side) for side in FORM.sides)
    assert (first[:, 0] == cls).all()
    separator = first[0, batch["input_mask"][0].sum() - 1]
    assert (second[:, 0] == separator).all()
    assert separator == second[0, batch["other_input_mask"][0].sum() - 1] != cls


def test_what_contradicts_the_method_is_one_line(tmp_path: Path):
    for flags, message in (
        ({"do_permutation": True}, "--do_permutation: --objective=camlm shows every predicted token as"),
        ({"trigram_rate": 0.1}, "--trigram_rate=0.1: --objective=camlm reads two texts"),
        (
            {"input_file": f"en={ROOT}/data/samples/en/work.txt"},
            "--input_file has documents, but --objective=camlm learns from pairs: give them as en-zh=A.en:",
        ),
        ({"pack_sequences": True}, "--pack_sequences needs --objective=masked_lm"),
        (
            {"objective": "btmlm"},
            "--input_file has pairs, but --objective=btmlm learns from documents",
        ),
    ):
        with pytest.raises(UsageError, match=message) as error:
            make(tmp_path, **flags)
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_records_for_a_model_that_writes_say_which_ids_are_special(tmp_path: Path, capsys: pytest.CaptureFixture):
    manifest = make(tmp_path, objective="btmlm", input_file=f"{ROOT}/data/samples/en/work.txt")
    assert manifest["masking"] == "static"
    vocabulary = (ROOT / "albert_config/vocab.txt").read_text(encoding="utf-8").split("\n")
    assert vocabulary[manifest["mask_vocabulary"]["mask_id"]] == "[MASK]"
    assert "mask_vocabulary" not in make(tmp_path, objective="masked_lm", input_file=f"{ROOT}/data/samples/en/work.txt")
