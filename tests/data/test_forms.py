"""Forms: batches have the shapes of the schema, which the planner compiles; a new form is one class and two rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError

import create_pretraining_data
import inspect_records
import plan_training
from commands.flags import parse
from data import objectives
from data.forms import FORMS, Segments, Side, texts_read
from data.forms.segments import COMPACT_FEATURES, join_pairs
from data.forms.sides import original_ids, side_problems
from data.masking import Masking, hide_tokens
from data.objectives import OBJECTIVES, Objective
from data.randomness import keys
from data.reading import PretrainingDataset
from data.recipe import Recipe
from data.schema import Feature, padding, present, schema_from_json, schema_to_json, shapes
from data.tfrecord.decoding import Column
from data.tfrecord.frames import MalformedRecordError
from data.tokenizers.training import train_sentencepiece
from data.word_order import WordOrder

ROOT = Path(__file__).resolve().parents[2]

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"今天气很好我们学习语言模型，。北京明"]
TEXT = "今天天气很好。\n我们学习语言模型。\n今天学习。\n明天北京很好，我们学习。\n\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    (tmp_path / "text.txt").write_text(TEXT * 30, encoding="utf-8")
    (tmp_path / "pairs.txt").write_text("今天天气很好。\t我们学习。\n" * 30, encoding="utf-8")
    return tmp_path


def make(folder, name="x.tfrecord", text="text.txt", **flags):
    options = {"max_seq_length": 32, "max_predictions_per_seq": 6, "dupe_factor": 1, "num_workers": 1, **flags}
    create_pretraining_data.main(
        create_pretraining_data.Options(
            input_file=(str(folder / text),),
            output_file=(str(folder / name),),
            vocab_file=str(folder / "vocab.txt"),
            **options,
        )
    )
    return json.loads((folder / name).with_suffix(".manifest.json").read_text(encoding="utf-8"))


def found_shapes(batch):
    return {name: (value.shape, value.dtype.name) for name, value in batch.items()}


def planned_shapes(objective, shuffled):
    sizes = {"train_batch_size": 5, "max_seq_length": 32, "max_predictions_per_seq": 6}
    flags = ["--bert_config_file=x", "--device=cpu", *(f"--{name}={size}" for name, size in sizes.items())]
    options = parse(plan_training.Options, [*flags, f"--max_word_order_per_seq={shuffled}"])
    object.__setattr__(options, "objective", objective)
    return {name: (value.shape, value.dtype.name) for name, value in plan_training.abstract_batch(options).items()}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("masking", ["static", "dynamic"])
@pytest.mark.parametrize("trigram_rate", [0.0, 0.1])
def test_the_planner_s_batch_is_the_reader_s(folder, objective, masking, trigram_rate):
    # The documents are shorter than PLUG's.
    drawn: dict[str, Any] = (
        {"source_length_range": (8, 32), "target_length_range": (4, 512)} if objective == "plug" else {}
    )
    text = "pairs.txt" if OBJECTIVES[objective].text == "pairs" else "text.txt"
    if trigram_rate and texts_read(FORMS[OBJECTIVES[objective].form]) > 1:
        with pytest.raises(UsageError, match=rf"--trigram_rate=0\.1: --objective={objective} reads two texts"):
            make(folder, objective=objective, trigram_rate=trigram_rate, text=text)
        return
    manifest = make(folder, objective=objective, masking=masking, trigram_rate=trigram_rate, text=text, **drawn)
    dataset = PretrainingDataset(str(folder / "x.tfrecord"), 5)
    expected = planned_shapes(objective, manifest["max_word_order_per_seq"])
    assert found_shapes(dataset.batch(0)) == expected == shapes(dataset.schema, dataset.lengths, 5)
    for batch in dataset.evaluation_batches(5):
        assert found_shapes(batch) == expected
    labelled = FORMS[OBJECTIVES[objective].form].label
    assert ("next_sentence_labels" in expected) == bool(labelled)
    assert not labelled or expected[labelled] == ((5,), "int32")
    assert ("word_order_ids" in expected) == (trigram_rate > 0)


@pytest.mark.parametrize("masking", ["static", "dynamic"])
def test_packed_batches_are_as_the_schema_says(folder, masking):
    manifest = make(folder, objective="masked_lm", pack_sequences=True, short_seq_prob=1.0, masking=masking)
    assert (manifest["form"], manifest["lengths"]["tokens"]) == ("packed", 32)
    dataset = PretrainingDataset(str(folder / "x.tfrecord"), 5)
    expected = shapes(FORMS["packed"].schema, manifest["lengths"], 5)
    assert found_shapes(dataset.batch(0)) == expected
    assert expected["sequence_ids"] == ((5, 32), "int32")
    assert dataset.batch(0)["sequence_ids"].max() > 1


@pytest.mark.parametrize("flags", [{}, {"masking": "dynamic"}, {"objective": "masked_lm", "pack_sequences": True}])
def test_manifests_without_features_lengths_and_form_read_as_before(folder, flags):
    """Those of earlier versions: the form is the recipe's `packing`, lengths are three numbers."""
    make(folder, **flags)
    path = str(folder / "x.tfrecord")
    now = PretrainingDataset(path, 4).batch(3)
    manifest_path = folder / "x.manifest.json"
    manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    for name in ("features", "lengths", "form"):
        del manifest[name]
    form = manifest["recipe"].pop("form")
    manifest["recipe"]["packing"] = form == "packed"
    del manifest["tokenizer"]["segment_ids"]
    manifest_path.write_text(json.dumps(manifest), encoding="utf-8")
    before = PretrainingDataset(path, 4)
    for name, value in before.batch(3).items():
        np.testing.assert_array_equal(value, now[name])
    assert before.form is FORMS[form or "one_row"]
    assert inspect_records.main(parse(inspect_records.Options, ["--action=verify", f"--input_file={path}"])) == 0


def test_manifests_that_this_version_cannot_read_are_one_line(folder):
    make(folder)
    manifest_path = folder / "x.manifest.json"
    manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    ids, *others = manifest["features"]
    for change, message in (
        (
            {"form": "octagon"},
            "form=octagon, which this version does not know; known: one_row, packed, source_target, two_sides",
        ),
        ({"features": [{"name": "input_ids"}]}, r"\$.features\[0\]"),
        ({"features": [{"name": "x", "axes": [], "dtype": "O", "stored": True}]}, r"\$.features\[0\].dtype is 'O'"),
        ({"features": [{**ids, "axes": ["x"]}, *others]}, "input_ids of form one_row is missing or differs"),
        ({"features": others}, "input_ids of form one_row is missing or differs"),
        ({"features": [ids, {**ids, "name": "x"}, *others]}, "'x' is none of form one_row"),
    ):
        manifest_path.write_text(json.dumps(manifest | change), encoding="utf-8")
        with pytest.raises(UsageError, match=message) as error:
            PretrainingDataset(str(folder / "x.tfrecord"), 4)
        assert "\n" not in str(error.value)


def test_a_schema_survives_json_and_padding_weighs_nothing():
    schema = FORMS["packed"].schema
    assert schema_from_json(json.loads(json.dumps(schema_to_json(schema)))) == schema
    lengths = {"tokens": 7, "predictions": 3, "shuffled": 0}
    rows = padding(schema, lengths, 2)
    assert found_shapes(rows) == shapes(schema, lengths, 2)
    assert not any(value.any() for value in rows.values())
    assert "word_order_ids" not in rows


def test_laws_of_a_recipe_name_the_flags():
    def recipe(**changes):
        values = {"objective": "masked_lm", "masking": Masking(0.15, 6), "dynamic": False, "form": "packed", **changes}
        return Recipe(
            **values, whole_word=True, segmenter="none", max_seq_length=32, dupe_factor=1, short_seq_prob=0.1, seed=1
        )

    recipe()
    for changes, message in (
        ({"objective": "albert"}, "--pack_sequences needs --objective=masked_lm: with albert an example is one pair"),
        ({"word_order": WordOrder(windows="any")}, "give --trigram_windows=unmasked"),
        (
            {"form": None, "dynamic": True, "masking": Masking(0.15, 6, permute=True)},
            "--do_permutation needs --masking=static",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            recipe(**changes)


def test_records_in_xlmr_s_layout_are_in_its_template(tmp_path):
    """<s> A </s></s> B </s> with one segment id; a packed row is a run of <s> A </s>."""
    text = ROOT / "data/samples/zh/nature.txt"
    sentences = [line for line in text.read_text(encoding="utf-8").split("\n") if line]
    model = train_sentencepiece(sentences, vocab_size=1000, layout="xlmr", do_lower_case=False)
    (tmp_path / "spiece.model").write_bytes(model)

    def rows(name, part, **flags):
        options = {"max_seq_length": 96, "max_predictions_per_seq": 8, "dupe_factor": 1, "num_workers": 1, **flags}
        create_pretraining_data.main(
            create_pretraining_data.Options(
                input_file=(str(text),),
                output_file=(str(tmp_path / name),),
                spm_model_file=str(tmp_path / "spiece.model"),
                do_lower_case=False,
                **options,
            )
        )
        (batch,) = PretrainingDataset(str(tmp_path / name), 1).evaluation_batches(200)
        assert not batch["segment_ids"].any()
        for ids, numbers in zip(original_ids(batch, Side()), batch[part], strict=True):
            yield from (ids[numbers == number] for number in range(1, numbers.max() + 1))

    for masking in ("static", "dynamic"):
        for ids in rows(f"{masking}.tfrecord", "input_mask", masking=masking):
            ends = np.flatnonzero(ids == 2).tolist()
            assert (ids[0], len(ends), ends[1] - ends[0], ends[2]) == (0, 3, 1, len(ids) - 1)
    packed = list(rows("p.tfrecord", "sequence_ids", objective="masked_lm", pack_sequences=True, short_seq_prob=1.0))
    for ids in packed:
        assert (np.flatnonzero(ids == 0).tolist(), np.flatnonzero(ids == 2).tolist()) == ([0], [len(ids) - 1])


# -- a second member ---------------------------------------------------------------------------------------------------


class SourceTarget:
    """Segment A is the source, segment B the target: two rows of features, each with masks of its own."""

    schema = (
        *(
            Feature(f"{side}_{name}", (axis,), dtype)
            for side, tokens, slots in (("source", "tokens", "predictions"), ("target", "target", "target_predictions"))
            for name, axis, dtype in (
                ("ids", tokens, "int32"),
                ("mask", tokens, "int32"),
                ("lm_positions", slots, "int32"),
                ("lm_ids", slots, "int32"),
                ("lm_weights", slots, "float32"),
            )
        ),
        Feature("target_tokens", (), "int32", stored=False),
    )
    optional = ()
    apart = False
    label = sequences = ""
    sides = tuple(
        Side(f"{s}_ids", f"{s}_mask", f"{s}_mask", hidden=f"{s}_lm", shuffled="") for s in ("source", "target")
    )

    def check(self, recipe):
        if recipe.pairing.num_segments < 2:
            raise UsageError("a target needs a second segment")

    def lengths(self, tokens, predictions, shuffled, target=0):
        half = tokens // 2
        return {"tokens": tokens, "target": half, "predictions": predictions, "target_predictions": predictions // 2}

    def width(self, recipe):
        return recipe.max_seq_length + recipe.max_seq_length // 2

    def max_tokens(self, recipe, template):
        return template.max_tokens(recipe.max_seq_length // 2, 2)

    def lay_out(self, tokens, pairs, recipe, vocabulary):
        return tokens, pairs, {}

    def join(self, tokens, pairs, recipe, vocabulary):
        return join_pairs(tokens, pairs, vocabulary.template, 2, self.width(recipe))

    def features(self, segments, keys_N, recipe, specials, vocabulary):
        features = {}
        L, half = recipe.max_seq_length, recipe.max_seq_length // 2
        for side, name, width in ((0, "source", L), (1, "target", half)):
            begin, end = segments.bounds[:, side], segments.bounds[:, side + 1]
            inside = np.arange(width) < (end - begin)[:, None]
            column = np.minimum(begin[:, None] + np.arange(width), segments.ids.shape[1] - 1)
            ids = np.where(inside, np.take_along_axis(segments.ids, column, 1), 0)
            starts = np.where(inside, np.take_along_axis(segments.word_starts, column, 1), False)
            # The first token of a target is no special, but `hide_tokens` takes column 0 for one.
            masking = Masking(recipe.masking.rate, recipe.masking.max_predictions // (1 + side))
            special = vocabulary.special.take(ids)
            special[:, 0] = True
            hidden, _ = hide_tokens(ids, starts, end - begin, keys(keys_N, side), masking, vocabulary, special)
            features[f"{name}_ids"] = hidden["input_ids"]
            features[f"{name}_mask"] = inside.astype(np.int32)
            for what in ("positions", "ids", "weights"):
                features[f"{name}_lm_{what}"] = hidden[f"masked_lm_{what}"]
        return features

    def complete(self, features, specials):
        return {**features, "target_tokens": features["target_mask"].sum(axis=1, dtype=np.int32)}

    def problems(self, features, manifest):
        found = [side_problems(features, side, manifest) for side in self.sides]
        return {
            f"{side.ids}: {name}": wrong
            for side, part in zip(self.sides, found, strict=True)
            for name, wrong in part.items()
        }


@pytest.fixture
def toy(monkeypatch):
    """One form and two rows, as a paper would add them."""
    form = SourceTarget()
    monkeypatch.setitem(FORMS, "both_masked", form)
    rows: Any = objectives.OBJECTIVES
    row = Objective(paper="A toy", summary="both sides masked", pairing="sop", form="both_masked")
    monkeypatch.setitem(rows, "toy", row)
    monkeypatch.setitem(rows, "toy_pairs", Objective(**{**vars(row), "text": "pairs"}))
    return form


@pytest.mark.parametrize("masking", ["static", "dynamic"])
@pytest.mark.parametrize("objective", ["toy", "toy_pairs"])
def test_a_second_form_goes_all_the_way(folder, capsys, toy, masking, objective):
    (folder / "pairs.txt").write_text("今天很好。\t天气很好。\n我们学习\t北京，明天。\n" * 40, encoding="utf-8")
    text = "pairs.txt" if objective == "toy_pairs" else "text.txt"
    manifest = make(folder, text=text, objective=objective, masking=masking)
    assert manifest["form"] == "both_masked"
    assert manifest["lengths"] == {"tokens": 32, "target": 16, "predictions": 6, "target_predictions": 3}
    assert schema_from_json(manifest["features"]) == toy.schema
    path = str(folder / "x.tfrecord")
    dataset = PretrainingDataset(path, 5)
    batch = dataset.batch(0)
    assert found_shapes(batch) == shapes(toy.schema, manifest["lengths"], 5) == planned_shapes(objective, 0)
    assert (dataset.max_predictions_per_seq, dataset.max_word_order_per_seq) == (6, 0)
    assert batch["source_lm_weights"].sum() > 0 < batch["target_lm_weights"].sum()
    np.testing.assert_array_equal(batch["target_tokens"], batch["target_mask"].sum(axis=1))
    check_texts(batch, toy.sides, (folder / text).read_text(encoding="utf-8"))
    for number, evaluated in enumerate(dataset.evaluation_batches(7)):
        assert found_shapes(evaluated) == shapes(toy.schema, manifest["lengths"], 7)
        assert number or evaluated["source_mask"].any()

    def inspect(action, *flags):
        options = parse(inspect_records.Options, [f"--action={action}", f"--input_file={path}", *flags])
        return inspect_records.main(options), capsys.readouterr().out

    status, out = inspect("verify")
    assert status == 0, out
    status, out = inspect("show", "--limit=2")
    assert "# 1: " in out
    assert out.count("[CLS]") == 2
    status, out = inspect("stats")
    assert "positions filled" in out
    assert ("labels" in out) is False


def check_texts(batch: Mapping[str, np.ndarray], sides: tuple[Side, ...], text: str) -> None:
    """Every side, with its labels put back, is a stretch of the text between its specials."""
    plain = "".join(text.split())
    for side in sides:
        for ids, mask in zip(original_ids(batch, side), batch[side.mask], strict=True):
            tokens = [VOCABULARY[i] for i in ids[mask > 0]]
            assert "".join(t for t in tokens if t not in ("[CLS]", "[SEP]")) in plain


def test_verify_finds_what_is_wrong_with_one_side_of_a_second_form(folder, capsys, toy):
    make(folder, objective="toy", masking="static")
    path = folder / "x.tfrecord"
    dataset = PretrainingDataset(str(path), dataset_size(path))
    (batch,) = dataset.evaluation_batches(dataset.num_examples)
    batch["target_mask"][3, 1] = 0
    from data.tfrecord.encoding import encode_examples

    stored = [feature.name for feature in present(toy.schema, dataset.lengths) if feature.stored]
    path.write_bytes(encode_examples({name: batch[name] for name in stored})[0].tobytes())
    assert inspect_records.main(parse(inspect_records.Options, ["--action=verify", f"--input_file={path}"])) == 1
    assert "1 record(s): target_ids: target_mask is not ones and then zeros" in capsys.readouterr().out


def dataset_size(path) -> int:
    return PretrainingDataset(str(path), 1).num_examples


def test_segments_of_compact_records_come_back(folder):
    from data.tfrecord.decoding import decode_examples
    from data.tfrecord.encoding import encode_examples
    from data.tfrecord.files import RecordFile

    ids = np.asarray([[2, 5, 3, 6, 3, 0], [2, 5, 6, 7, 3, 3]], np.int32)
    segments = Segments(ids, ids > 5, np.asarray([[0, 3, 4, 5], [0, 2, 5, 6]]), np.asarray([1, 0]))
    path = folder / "c.tfrecord"
    path.write_bytes(encode_examples(segments.to_record())[0].tobytes())
    columns, bad = decode_examples(RecordFile(path).read(np.arange(2)))
    again = Segments.from_record(columns, 6)
    assert not bad.any()
    for name in ("ids", "bounds", "label"):
        np.testing.assert_array_equal(getattr(again, name), getattr(segments, name))
    np.testing.assert_array_equal(again.word_starts, (ids > 5) & (np.arange(6) < segments.lengths[:, None]))


@pytest.mark.parametrize("name", COMPACT_FEATURES)
def test_compact_records_of_other_numbers_are_malformed(name: str):
    splits = np.array([0, 1, 2])
    columns = {each: Column(np.ones(2, np.int64), splits) for each in COMPACT_FEATURES}
    assert Segments.from_record(columns, 3).ids.shape == (2, 3)
    columns[name] = Column(np.ones(2, np.float32), splits)
    with pytest.raises(MalformedRecordError, match=f"{name} holds float32 values; expected whole numbers"):
        Segments.from_record(columns, 3)
    with pytest.raises(MalformedRecordError, match=f"{name} holds float32 values"):
        Segments.problems(columns, None, [3])


def test_compact_records_without_word_starts_are_malformed():
    """Nothing of them would be masked, and a run would learn nothing."""
    columns = {each: Column(np.ones(2, np.int64), np.array([0, 1, 2])) for each in COMPACT_FEATURES}
    columns["token_boundary"] = Column(np.zeros(0, np.int64), np.array([0, 0, 0]))
    with pytest.raises(MalformedRecordError, match="token_boundary has another length than input_ids"):
        Segments.from_record(columns, 3)


def test_a_feature_without_values_is_a_matrix_without_columns():
    assert Column(np.zeros(0, np.int64), np.zeros(4, np.int64)).matrix(0).shape == (3, 0)
