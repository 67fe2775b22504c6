"""Rows of several requests in one batch are answered as each input alone; warming up meets every shape."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from absl.app import UsageError
from http_cases import Counted, expected, imitation
from kind_files import CONFIG, SPECIALS, WORDS
from test_exporting import run_of

from conversion.writers import write_ours
from ground.tensors import named_variables
from modeling import PretrainingModel
from modeling.config import Config
from serving import rows
from serving.exported import is_exported, open_export
from serving.formats import export
from serving.loading import Loaded, load
from serving.served import Served, fields_of

pytestmark = pytest.mark.slow
HAS_ONNX = all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxruntime", "tf2onnx"))
LONG = " ".join("jihgfedcba" * 4)
# A row of each kind, and inputs of several lengths.
INPUTS: dict[str, list[Any]] = {
    "lcqmc": [("a b", "c"), ("d e f g h i j", "a b c"), {"text_a": "j", "text_b": LONG}],
    "cluener": [{"text_a": "a b c d e"}, "j", LONG],
    "squad": [{"question": "a", "context": "b c d a e"}, {"question": "i", "context": LONG}],
    "copa": [("a b", "c", ["d", "e f"]), {"context": LONG, "choices": ["a", "b", "c"]}],
    "lcqmc_matching": [("a b", "c"), "d", (LONG, "a")],
}


def same(found: Any, wanted: Any) -> bool:
    """Return whether answers are equal but for the last digit of their numbers."""
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(same(found[name], wanted[name]) for name in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return found == pytest.approx(wanted, abs=2e-4) if isinstance(wanted, float) else found == wanted


def answered(loaded: Loaded, inputs: list[Any]) -> list[dict[str, Any]]:
    """Return answers by as few batches as there are shapes."""
    asked = [rows.ask(loaded, each) for each in inputs]
    flat = [(place, row) for place, each in enumerate(asked) for row in each.rows]
    predictions: list[list[Any]] = [[] for _ in asked]
    for shape in {row.shape for _, row in flat}:
        alike = [(place, row) for place, row in flat if row.shape == shape]
        for (place, _), found in zip(alike, rows.predicted(loaded, [row for _, row in alike]), strict=True):
            predictions[place].append(found)
    return [rows.told(loaded, each, found) for each, found in zip(asked, predictions, strict=True)]


@pytest.mark.parametrize("row_name", INPUTS)
def test_rows_in_one_batch_are_answered_as_each_input_alone(row_name: str, tmp_path: Path):
    run_of(row_name, tmp_path / "run")
    loaded = load(tmp_path / "run")
    inputs = INPUTS[row_name]
    assert same(answered(loaded, inputs), [loaded.predict(each) for each in inputs])
    alone = [answered(loaded, [each])[0] for each in inputs]
    assert alone == [loaded.predict(each) for each in inputs]
    if keras.config.backend() == "tensorflow":
        assert loaded.programs.count == 1


def test_a_pretrained_model_fills_masks_and_embeds_in_one_request(tmp_path: Path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, *WORDS]) + "\n")
    config = Config(**CONFIG)  # pyright: ignore[reportArgumentType]
    tensors = {name: np.asarray(value) for name, value in named_variables(PretrainingModel(config)).items()}
    write_ours(tmp_path / "model", config, tensors, [tmp_path / "vocab.txt"])
    loaded = load(tmp_path / "model")
    inputs = ["a [MASK] b", "c", {"text": "[MASK] [MASK] [MASK]"}, {"text_a": "d e"}]
    assert same(answered(loaded, inputs), [loaded.predict(each) for each in inputs])
    assert [field["name"] for field in fields_of(loaded)] == ["text_a"]


@pytest.mark.parametrize(
    ("row_name", "names"),
    [
        ("lcqmc", ["text_a", "text_b"]),
        ("squad", ["question", "context"]),
        ("copa", ["context", "choices", "question"]),
        ("lcqmc_matching", ["text_a", "text_b"]),
        ("cluener", ["text_a"]),
    ],
)
def test_a_model_knows_what_its_inputs_are_called_and_examples_of_them(row_name: str, names: list[str], tmp_path: Path):
    run_of(row_name, tmp_path / "run")
    served = Served("m", "1", load(tmp_path / "run"))
    assert [each["name"] for each in served.fields] == names
    assert [each["name"] for each in served.fields if each["list"]] == [name for name in names if name == "choices"]
    served.warm([1], 64)
    assert served.examples
    for example in served.examples:
        assert example.keys() <= set(names)
        assert served.loaded.predict(example)
    assert served.embeds == (row_name == "lcqmc_matching")


def test_features_are_joined_with_zeros():
    ids = [np.array([row], np.int32) for row in ([5, 6], [7, 8, 9, 9])]
    batch = rows.joined([{"ids": each} for each in ids], 4)
    assert batch["ids"].tolist() == [[5, 6, 0, 0], [7, 8, 9, 9], [0] * 4, [0] * 4]
    choices = rows.joined([{"ids": np.ones((1, 3, 2), np.int32)}], 1)["ids"]
    assert choices.tolist() == [[[1, 1], [1, 1], [1, 1], [0, 0]]]


def test_warming_meets_every_length_and_size_within_the_budget(tmp_path: Path):
    programs = Counted()
    loaded = imitation(tmp_path, programs, max_seq_length=64)
    assert rows.warm(loaded, ["a b"], [1, 2, 4], 128) == len(programs.batches) == 8
    assert programs.batches == [(size, length) for length in (16, 32) for size in (1, 2, 4)] + [(1, 64), (2, 64)]


def test_where_one_program_takes_every_shape_warming_asks_single_rows(tmp_path: Path):
    programs = Counted()
    programs.free = True
    loaded = imitation(tmp_path, programs, max_seq_length=64)
    assert loaded.lengths == tuple(range(4, 65, 4))
    assert rows.warm(loaded, ["a b"], [1, 2, 4], 128) == 3
    assert programs.batches == [(1, 16), (1, 32), (1, 64)]


def test_a_text_of_too_many_windows_or_choices_is_one_line(tmp_path: Path):
    run_of("squad", tmp_path / "run")
    with pytest.raises(UsageError, match=r"the text has 1,333 windows of 16 tokens; at most 64"):
        rows.ask(load(tmp_path / "run"), {"question": "a", "context": "b c d e " * 2000})


def check_signature_of_strings(loaded: Loaded, folder: Path) -> None:
    """Ask the graph as another program does."""
    import tensorflow as tf
    import tensorflow_text  # noqa: F401

    served: Any = tf.saved_model.load(str(folder))
    given = [("a b c", "d"), ("j", "i h g f e d c b a")]
    found = served.signatures["serving_default"](
        text_a=tf.constant([a for a, _ in given]), text_b=tf.constant([b for _, b in given])
    )
    wanted = loaded.predict(given)
    assert [each.decode() for each in found["label"].numpy()] == [each["prediction"] for each in wanted]
    assert found["labels"].numpy().tolist() == [[b"0", b"1"]] * 2
    np.testing.assert_allclose(
        found["probabilities"], [[*each["probabilities"].values()] for each in wanted], atol=2e-6
    )


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="exports are TensorFlow's")
def test_an_export_of_each_form_answers_as_its_model(tmp_path: Path):
    run_of("lcqmc", tmp_path / "run")
    loaded = load(tmp_path / "run", dtype="float32")
    wanted = [loaded.predict(each) for each in INPUTS["lcqmc"]]
    (made,) = export(loaded, tmp_path / "text", "saved_model_text")
    assert made.difference < 1e-4
    assert made.agreeing == 1.0
    check_signature_of_strings(loaded, tmp_path / "text")
    export(loaded, tmp_path / "ids", "saved_model")
    forms = {"text": "saved_model_text", "ids": "saved_model"}
    if HAS_ONNX:
        export(loaded, tmp_path / "onnx", "onnx", int8=True)
        forms |= {"onnx": "onnx", "onnx/model_int8.onnx": "onnx"}
    for name, form in forms.items():
        assert is_exported(tmp_path / name)
        opened = open_export(tmp_path / name, threads=1)
        small = "int8" in name
        assert (opened.form, opened.precision) == (form, "int8" if small else "float32")
        found = answered(opened, INPUTS["lcqmc"])
        if not small:
            assert same(found, wanted)
        assert [each["prediction"] for each in found] == [each["prediction"] for each in wanted]
        assert fields_of(opened) == fields_of(loaded)
        if not small:
            assert same(opened.predict(INPUTS["lcqmc"], batch_size=2), wanted)
        served = Served("m", "1", opened)
        assert served.warm([1], 64)
        assert served.examples
    with pytest.raises(UsageError, match="cuts texts itself"):
        rows.ask(open_export(tmp_path / "text"), ("a", "b"), 8)
    (tmp_path / "ids/labels.json").write_text("[]")
    with pytest.raises(UsageError, match="does not hold the files that its"):
        open_export(tmp_path / "ids")


def test_the_answer_of_the_imitation_is_that_of_its_tokens(tmp_path: Path):
    loaded = imitation(tmp_path)
    assert loaded.predict("a b")["probabilities"]["1"] == expected("a b") == 0.17
