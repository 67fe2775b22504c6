import json

import numpy as np
import pytest
from absl.app import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st

from data import order
from data.forms import FORMS
from data.masking import Masking
from data.reading import PretrainingDataset, Shards, expand_shards
from data.recipe import Recipe
from data.schema import shapes
from data.tfrecord import files
from data.tfrecord.encoding import encode_examples
from data.tokenizers.wordpiece import WordPieceTokenizer
from data.writing.local import create_examples
from data.writing.output import Output

L, P = 12, 3


def write_shard(path, begin, count, length=L, drop=None):
    """Examples that tell their number: token 1 of example i is 100 + i."""
    numbers = np.arange(begin, begin + count)
    ids = np.zeros((count, length), np.int64)
    ids[:, 0], ids[:, 1], ids[:, 2] = 2, 100 + numbers, 3
    features = {
        "input_ids": ids,
        "input_mask": (ids > 0).astype(np.int64),
        "segment_ids": np.zeros_like(ids),
        "masked_lm_positions": np.tile([1, 0, 0], (count, 1)),
        "masked_lm_ids": np.tile([7, 0, 0], (count, 1)),
        "masked_lm_weights": np.tile(np.asarray([1, 0, 0], np.float32), (count, 1)),
        "next_sentence_labels": (numbers % 2)[:, None],
    }
    if drop:
        del features[drop]
    path.write_bytes(encode_examples(features)[0].tobytes() if count else b"")
    return path


@pytest.fixture
def shards(tmp_path):
    begin = 0
    for i, count in enumerate((5, 0, 9, 1, 7)):
        write_shard(tmp_path / f"x-{i}.tfrecord", begin, count)
        begin += count
    return str(tmp_path / "x-*.tfrecord")


def numbers(batch):
    return [int(i) - 100 for i, mask in zip(batch["input_ids"][:, 1], batch["input_mask"], strict=True) if mask.any()]


def test_features_have_shapes_and_types(shards):
    dataset = PretrainingDataset(shards, 4)
    batch = dataset.batch(0)
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == shapes(
        FORMS["one_row"].schema, dataset.lengths, 4
    )
    for name, value in batch.items():
        assert value.dtype == (np.float32 if name == "masked_lm_weights" else np.int32)
        width = {"input_ids": L, "input_mask": L, "segment_ids": L, "next_sentence_labels": None}.get(name, P)
        assert value.shape == ((4, width) if width else (4,))


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(batch_size=st.integers(1, 30), seed=st.integers(0, 2**40), shuffle=st.sampled_from([1, 6, 12, 10**6]))
def test_every_epoch_holds_every_example_once(tmp_path_factory, batch_size, seed, shuffle):
    folder = tmp_path_factory.mktemp("shards")
    for i, count in enumerate((5, 0, 9, 1, 7)):
        write_shard(folder / f"x-{i}.tfrecord", sum((5, 0, 9, 1, 7)[:i]), count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "SHUFFLE_EXAMPLES", shuffle)
        patch.setattr(files, "OPEN_FILES", 2)
        dataset = PretrainingDataset(str(folder / "*"), batch_size, seed=seed)
        assert (dataset.num_examples, dataset.max_seq_length, dataset.max_predictions_per_seq) == (22, L, P)
        steps = -(-22 * 3 // batch_size)
        stream = [number for step in range(steps) for number in numbers(dataset.batch(step))]
        for epoch in range(3):
            assert sorted(stream[22 * epoch : 22 * (epoch + 1)]) == list(range(22))


def test_batch_is_a_function_of_seed_and_step(shards):
    one, two = PretrainingDataset(shards, 4, seed=3), PretrainingDataset(shards, 4, seed=3)
    forwards = [one.batch(step) for step in range(8)]
    for step in reversed(range(8)):
        for name, value in two.batch(step).items():
            np.testing.assert_array_equal(value, forwards[step][name])
    other = PretrainingDataset(shards, 4, seed=4)
    assert [numbers(other.batch(s)) for s in range(8)] != [numbers(b) for b in forwards]
    order = [numbers(PretrainingDataset(shards, 22, seed=3).batch(epoch)) for epoch in (0, 1)]
    assert order[0] != order[1]
    assert order[0] != list(range(22))


def test_readers_of_a_pod_share_the_batch_of_one(shards):
    whole = PretrainingDataset(shards, 6, seed=1)
    parts = [PretrainingDataset(shards, 2, seed=1, shard=(i, 3)) for i in range(3)]
    again = [whole.part(i, 3, 2) for i in range(3)]
    for step in range(9):
        assert [n for part in parts for n in numbers(part.batch(step))] == numbers(whole.batch(step))
        assert [numbers(part.batch(step)) for part in again] == [numbers(part.batch(step)) for part in parts]
    assert whole.shard == (0, 1)


def test_shards_found_once_are_read_by_all(made, monkeypatch):
    shards = Shards.find([str(made / "static-*"), str(made / "longer-*")])
    assert len(shards.paths) == len(shards.listings) == 4
    static = shards.where(lambda manifest: manifest is not None and manifest["max_seq_length"] == 24)
    monkeypatch.setattr("data.shards.find_manifests", None)
    monkeypatch.setattr("data.shards.glob", None)
    dataset = PretrainingDataset(static, 4)
    assert [path.name[:6] for path in dataset.paths] == ["static"] * 2
    assert (dataset.max_seq_length, dataset.part(0, 2, 2).num_examples) == (24, dataset.num_examples)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_evaluation_drops_nothing(shards, count):
    readers = [list(PretrainingDataset(shards, 1, shard=(i, count)).evaluation_batches(4)) for i in range(count)]
    assert len({len(batches) for batches in readers}) == 1
    seen = [number for batches in readers for batch in batches for number in numbers(batch)]
    assert sorted(seen) == list(range(22))
    for batches in readers:
        for batch in batches:
            assert all(len(value) == 4 for value in batch.values())
            empty = ~batch["input_mask"].any(axis=1)
            assert not batch["masked_lm_weights"][empty].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_seq_length": 99}, r"--max_seq_length=99 but .*5 files.* has max_seq_length=12"),
        ({"max_predictions_per_seq": 2}, r"--max_predictions_per_seq=2 but .* has max_predictions_per_seq=3"),
    ],
)
def test_lengths_other_than_asked(shards, change, message):
    with pytest.raises(UsageError, match=message):
        PretrainingDataset(shards, 4, **change)


def test_pattern_that_matches_nothing(tmp_path):
    with pytest.raises(UsageError, match=r"--input_file=.*none\*: no record file matches"):
        PretrainingDataset(str(tmp_path / "none*"), 4)
    with pytest.raises(UsageError, match="no record files given"):
        expand_shards("")


def test_files_without_examples(tmp_path):
    path = write_shard(tmp_path / "x.tfrecord", 0, 0)
    with pytest.raises(UsageError, match=r"no example in .*x.tfrecord"):
        PretrainingDataset(str(path), 4)


def test_patterns_do_not_pick_up_manifests_or_a_file_twice(shards, tmp_path):
    (tmp_path / "x.manifest.json").write_text(json.dumps({"shards": []}))
    assert len(expand_shards([str(tmp_path / "x*"), shards])) == 5


def test_missing_feature(tmp_path):
    path = write_shard(tmp_path / "x.tfrecord", 0, 3, drop="segment_ids")
    with pytest.raises(UsageError, match=r"x.tfrecord: a record lacks segment_ids; expected"):
        PretrainingDataset(str(path), 4)


def test_shards_of_different_lengths(tmp_path):
    write_shard(tmp_path / "x-0.tfrecord", 0, 3)
    write_shard(tmp_path / "x-1.tfrecord", 3, 3, length=16)
    with pytest.raises(UsageError, match=r"input_ids: 16 values where 12 are expected"):
        PretrainingDataset(str(tmp_path / "x*"), 6).batch(0)


def test_damaged_record_names_the_file_and_the_cure(shards, tmp_path):
    path = tmp_path / "x-2.tfrecord"
    content = bytearray(path.read_bytes())
    content[30] ^= 1
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"x-2.tfrecord: damaged at byte 0 .* inspect_records.py repair"):
        PretrainingDataset(shards, 22).batch(0)


# -- with a manifest ---------------------------------------------------------------------------------------------------

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"今天气很好我们学习语言模型，。"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    (folder / "corpus.txt").write_text("今天天气很好。\n我们学习语言模型。\n今天学习。\n\n" * 20, encoding="utf-8")
    tokenizer = WordPieceTokenizer.load(folder / "vocab.txt", do_lower_case=True)
    for name, dynamic, length in (("static", False, 24), ("dynamic", True, 24), ("longer", False, 32)):
        recipe = Recipe("albert", Masking(0.3, 6), dynamic, True, "rjieba", length, 1, 0.1, 1)
        output = Output((folder / f"{name}.tfrecord",), num_shards=2)
        create_examples([folder / "corpus.txt"], output, recipe, tokenizer, num_workers=1)
    return folder


def test_manifest_tells_lengths_and_counts(made):
    dataset = PretrainingDataset(str(made / "static-*"), 4)
    assert dataset.manifest is not None
    assert dataset.num_examples == dataset.manifest["num_examples"]
    assert (dataset.max_seq_length, dataset.max_predictions_per_seq) == (24, 6)


def test_flag_that_contradicts_the_manifest_names_both_values(made):
    with pytest.raises(
        UsageError, match=r"--max_seq_length=512 but .* has max_seq_length=24: give --max_seq_length=24"
    ):
        PretrainingDataset(str(made / "static-*"), 4, max_seq_length=512)


def test_shards_of_two_recipes(made):
    with pytest.raises(UsageError, match=r"static-.* has max_seq_length=24 but .*longer-.* has max_seq_length=32"):
        PretrainingDataset([str(made / "longer-*"), str(made / "static-*")], 4)
    with pytest.raises(UsageError, match=r"has masking=static but .* has masking=dynamic"):
        PretrainingDataset([str(made / "dynamic-*"), str(made / "static-*")], 4)


def test_file_with_more_or_fewer_examples_than_its_manifest_says(made, tmp_path):
    for name in ("static-00000-of-00002.tfrecord", "static-00001-of-00002.tfrecord", "static.manifest.json"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    path = tmp_path / "static-00000-of-00002.tfrecord"
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(UsageError, match=r"holds \d+ examples but its manifest says \d+"):
        PretrainingDataset(str(path), 4).batch(0)


def test_broken_manifest(made, tmp_path):
    (tmp_path / "x.tfrecord").write_bytes((made / "static-00000-of-00002.tfrecord").read_bytes())
    (tmp_path / "x.manifest.json").write_text("{")
    with pytest.raises(UsageError, match=r"x.manifest.json: not a manifest \(.*\); delete it"):
        PretrainingDataset(str(tmp_path / "x.tfrecord"), 4)


def unmasked(batch):
    ids = batch["input_ids"].copy()
    for row in range(len(ids)):
        count = int(batch["masked_lm_weights"][row].sum())
        ids[row, batch["masked_lm_positions"][row, :count]] = batch["masked_lm_ids"][row, :count]
    return ids


def test_dynamic_masks_change_with_the_epoch_and_nothing_else_does(made):
    path = str(made / "dynamic-00000*")
    n = PretrainingDataset(path, 1).num_examples
    dataset = PretrainingDataset(path, n, seed=9)
    epochs = [dataset.batch(epoch) for epoch in (0, 1)]
    again = PretrainingDataset(path, n, seed=9).batch(1)
    for name, value in epochs[1].items():
        np.testing.assert_array_equal(value, again[name])
    assert sorted(unmasked(epochs[0]).tolist()) == sorted(unmasked(epochs[1]).tolist())
    assert sorted(epochs[0]["masked_lm_positions"].tolist()) != sorted(epochs[1]["masked_lm_positions"].tolist())


def test_masks_of_an_example_do_not_depend_on_the_batch_it_is_in(made):
    path = str(made / "dynamic-*")
    n = PretrainingDataset(path, 1).num_examples
    whole = PretrainingDataset(path, n, seed=2).batch(0)
    small = PretrainingDataset(path, 1, seed=2)
    for i in range(n):
        for name, value in small.batch(i).items():
            np.testing.assert_array_equal(value[0], whole[name][i])


def test_dynamic_equals_static_in_all_but_the_draws(made):
    static, dynamic = (PretrainingDataset(str(made / f"{name}-*"), 1) for name in ("static", "dynamic"))
    assert static.num_examples == dynamic.num_examples
    rows = []
    for dataset in (static, dynamic):
        (batch,) = dataset.evaluation_batches(dataset.num_examples)
        labels, segments = batch["next_sentence_labels"].tolist(), batch["segment_ids"].tolist()
        rows.append(list(zip(unmasked(batch).tolist(), labels, segments, batch["input_mask"].tolist(), strict=True)))
        assert batch["masked_lm_weights"].sum() > 0
    assert rows[0] == rows[1]


def test_dynamic_evaluation_has_fixed_masks(made):
    dataset = PretrainingDataset(str(made / "dynamic-*"), 4, seed=1)
    for one, two in zip(dataset.evaluation_batches(5), dataset.evaluation_batches(5), strict=True):
        for name, value in one.items():
            np.testing.assert_array_equal(value, two[name])


def test_dynamic_masking_may_be_asked_for_anew(made):
    dataset = PretrainingDataset(str(made / "dynamic-*"), 8, masking=Masking(0.5, 11))
    assert dataset.max_predictions_per_seq == 11
    weights = dataset.batch(0)["masked_lm_weights"]
    assert weights.shape == (8, 11)
    assert PretrainingDataset(str(made / "dynamic-*"), 8, max_predictions_per_seq=4).batch(0)[
        "masked_lm_ids"
    ].shape == (8, 4)


def test_dynamic_shards_need_their_manifest(made, tmp_path):
    (tmp_path / "x.tfrecord").write_bytes((made / "dynamic-00000-of-00002.tfrecord").read_bytes())
    with pytest.raises(UsageError, match=r"x.tfrecord: compact examples need the manifest"):
        PretrainingDataset(str(tmp_path / "x.tfrecord"), 4)
