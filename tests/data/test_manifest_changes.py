"""One value of a valid manifest is changed to any JSON value: the same batches, or one line; never a traceback."""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError

import create_pretraining_data
from commands.flags import parse
from data import inspection
from data.manifest import _check_agreement, find_manifests
from data.manifest_shape import _check_lengths
from data.reading import PretrainingDataset
from data.writing.output import Output

RECORDS = Path(__file__).resolve().parent.parent / "identity/before/records"
NESTED: Any = []
for _ in range(200):
    NESTED = [NESTED]
VALUES = [None, True, [], {}, "", "x", "../x", -1, 0, 1, 2**31, 2**70, 1.5, 1e308, [[3, 1]], [[0, 10**9]], NESTED]


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        if key != "flags":
            yield from places(child, (*path, key))


def changed(manifest: Any, path: tuple, value: Any) -> Any:
    if not path:
        return value
    manifest = copy.deepcopy(manifest)
    parent = manifest
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return manifest


def batches(path: Path) -> dict[str, np.ndarray]:
    dataset = PretrainingDataset(str(path), 3, seed=1)
    assert dataset.fill >= 0
    assert dataset.sequences_per_example >= 0
    return dataset.batch(0)


def attempt(function: Callable[[], Any]) -> tuple[Any, str]:
    try:
        return function(), ""
    except UsageError as error:
        return None, str(error)


# What dynamic masks follow: another value is another, valid, data set.
MEANT = {("recipe", "masking", "rate"), ("recipe", "masking", "ngram"), ("mask_vocabulary", "mask_id")}
MEANT |= {("recipe", "masking", "favor_shorter_ngram"), ("recipe", "albert_zh_labels"), ("tokenizer", "cls_id")}
MEANT |= {("recipe", "whole_word"), *[("recipe", "word_order", name) for name in ("rate", "identity", "overlap")]}


def make_targets(folder: Path) -> dict[str, Any]:
    """Write compact records with targets; return their manifest."""
    given = {"input_file": "text.txt", "vocab_file": "vocab.txt"}
    flags = [f"--{name}={RECORDS.parent / file}" for name, file in given.items()]
    flags += ["--objective=palm", "--masking=dynamic", "--max_seq_length=32", "--max_predictions_per_seq=5"]
    flags += ["--num_workers=1", "--dupe_factor=1", f"--output_file={folder / 'targets.tfrecord'}"]
    create_pretraining_data.main(parse(create_pretraining_data.Options, flags))
    path = folder / "targets.manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    return manifest


@pytest.mark.parametrize("name", ["albert", "structbert_dynamic", "packed_dynamic", "targets"])
def test_a_changed_value_is_harmless_or_one_line(name: str, tmp_path: Path):
    shard = tmp_path / f"{name}.tfrecord"
    first = RECORDS / f"{name}-00000-of-00002.tfrecord"
    if name == "targets":
        manifest = make_targets(tmp_path)
    else:
        manifest = json.loads((RECORDS / f"{name}.manifest.json").read_text(encoding="utf-8"))
    if first.exists():
        manifest["shards"] = manifest["shards"][:1]
        manifest["num_examples"] = manifest["shards"][0]["examples"]
        shard = tmp_path / first.name
    if not shard.exists():
        shutil.copy(RECORDS / shard.name, shard)
    written = shard.with_name("x.manifest.json")
    written.write_text(json.dumps(manifest), encoding="utf-8")
    expected, refused = batches(shard), 0
    # A prime step meets every place, and each with other values.
    every = [(path, value) for path in places(manifest) for value in VALUES]
    # What others lack, each place with each value.
    own = ("recipe", "continuation"), ("lengths", "target")
    every = [case for case in every if case[0][:2] in own] if name == "targets" else every[::5]
    for path, value in every:
        written.write_text(json.dumps(changed(manifest, path, value)), encoding="utf-8")
        found, line = attempt(lambda: batches(shard))
        assert "\n" not in line, (path, value)
        assert len(line) < 1000, (path, value)
        if found is None:
            refused += 1
        elif path and path not in MEANT and path[0] != "mask_vocabulary" and find_manifests([shard]):
            assert found.keys() == expected.keys(), (path, value)
            for feature, array in expected.items():
                np.testing.assert_array_equal(found[feature], array, err_msg=f"{path} {value}")
    assert refused > len(every) / 3


def test_inspection_of_a_changed_manifest_is_one_line(tmp_path: Path):
    shard = tmp_path / "bert.tfrecord"
    shutil.copy(RECORDS / "bert.tfrecord", shard)
    manifest = json.loads((RECORDS / "bert.manifest.json").read_text(encoding="utf-8"))
    for path in [("shards", 0, "name"), ("tokenizer", "vocab_size"), ("max_seq_length",), ("objective",)]:
        for value in VALUES:
            text = json.dumps(changed(manifest, path, value))
            shard.with_name("x.manifest.json").write_text(text, encoding="utf-8")
            _, line = attempt(lambda: list(inspection.verify([shard])))
            assert "\n" not in line, (path, value)


def renamed(manifest: Any, path: tuple) -> Any:
    """Return the manifest with an underscore behind the last key of `path`."""
    manifest = copy.deepcopy(manifest)
    parent = manifest
    for key in path[:-1]:
        parent = parent[key]
    parent[f"{path[-1]}_"] = parent.pop(path[-1])
    return manifest


@pytest.mark.parametrize("name", ["bert", "structbert_dynamic"])
def test_a_renamed_key_is_harmless_or_one_line(name: str, tmp_path: Path):
    """Reading, inspection and repair either do what they did with the key, or say what is wrong with it."""
    shard = tmp_path / next(RECORDS.glob(f"{name}*.tfrecord")).name
    shutil.copy(RECORDS / shard.name, shard)
    manifest = json.loads((RECORDS / f"{name}.manifest.json").read_text(encoding="utf-8"))
    manifest["shards"] = manifest["shards"][:1]
    manifest["num_examples"] = manifest["shards"][0]["examples"]
    written = shard.with_name("x.manifest.json")
    written.write_text(json.dumps(manifest), encoding="utf-8")
    expected, refused = batches(shard), set()
    for path in places(manifest):
        if not path or not isinstance(path[-1], str):
            continue
        written.write_text(json.dumps(renamed(manifest, path)), encoding="utf-8")
        found, line = attempt(lambda: batches(shard))
        attempt(lambda: list(inspection.verify([shard])))
        attempt(lambda: inspection.repair(shard))
        assert "\n" not in line, path
        if found is None:
            refused.add(path[-1])
        elif find_manifests([shard]):
            for feature, array in expected.items():
                np.testing.assert_array_equal(found[feature], array, err_msg=str(path))
    assert {"sha256", "ngram", "rate", "vocab_size"} <= refused


@pytest.mark.parametrize("name", ["../x.tfrecord", "/x.tfrecord", "a/x.tfrecord", "..", ".", "", "a\0b", "x" * 300])
def test_a_shard_is_a_plain_file_of_the_folder(name: str, tmp_path: Path):
    (tmp_path / "x.tfrecord").write_bytes(b"")
    content = {"shards": [{"name": name, "examples": 0, "sha256": ""}]}
    (tmp_path / "x.manifest.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(
        UsageError, match=r"\$\.shards\[0\]\.name is .*: expected .*; delete it to read the shards without it"
    ):
        find_manifests([tmp_path / "x.tfrecord"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"shards": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"shards": [' + b"9" * 5_000 + b"]}", "thousands of digits"),
        ('{"shards": []}'.encode("utf-16"), "UTF-16"),
        (b'{"shards": []}\xff', "no UTF-8"),
        (b"\x1f\x8b\0\0\0", "binary"),
        (b'{"shards": []\n, x}', "line 2, column 3"),
        (b'{"shards": NaN}', "invalid character"),
        (b"", "truncated"),
    ],
)
def test_what_is_no_json_says_why(content: bytes, reason: str, tmp_path: Path):
    (tmp_path / "x.tfrecord").write_bytes(b"")
    (tmp_path / "x.manifest.json").write_bytes(content)
    with pytest.raises(UsageError, match=rf"x\.manifest\.json: not a manifest \(.*{reason}.*\); delete it") as raised:
        find_manifests([tmp_path / "x.tfrecord"])
    assert "\n" not in str(raised.value)


def test_shards_go_to_one_folder():
    with pytest.raises(UsageError, match=r"--output_file=a/x,b/y: files of several folders"):
        Output((Path("a/x"), Path("b/y")))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("recipe", "word_order"), None),
        (("recipe", "word_order", "rate"), 0.5),
        (("recipe", "word_order", "tokens"), 2),
        (("max_word_order_per_seq",), 9),
        (("max_word_order_per_seq",), 0),
    ],
)
def test_shuffled_positions_are_as_many_as_the_recipe_makes(path: tuple, value: Any):
    manifest = json.loads((RECORDS / "structbert_dynamic.manifest.json").read_text(encoding="utf-8"))
    _check_lengths(manifest)
    with pytest.raises(UsageError, match=r"max_word_order_per_seq is \d+ but \d+ by"):
        _check_lengths(changed(manifest, path, value))


def test_a_manifest_without_word_order_agrees_with_one_that_shuffles_nothing():
    """Versions before word order wrote no such key; their shards are read together with later ones."""
    manifest = json.loads((RECORDS / "bert.manifest.json").read_text(encoding="utf-8"))
    assert manifest["max_word_order_per_seq"] == 0
    older = {name: value for name, value in manifest.items() if name != "max_word_order_per_seq"}
    for one, other in ((older, manifest), (manifest, older), (older, older)):
        _check_agreement((Path("a"), one), (Path("b"), other))
    for name, value in {"max_word_order_per_seq": 1, "max_seq_length": 33, "objective": "x", "masking": "x"}.items():
        with pytest.raises(UsageError, match=f"a has {name}={value} but b has {name}="):
            _check_agreement((Path("a"), older | {name: value}), (Path("b"), manifest))
