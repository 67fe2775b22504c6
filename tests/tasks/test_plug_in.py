"""Plug-in fine-tuning against NumPy on the streams of the body; symmetric, and both languages count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import pytest
from absl.app import UsageError
from language_files import VECO

from ground.tensors import ops
from modeling import Config, named_variables
from tasks.classification import ClassificationTask
from tasks.plug_in import PlugInTask, two_sides
from tasks.regularization import RDrop

CONFIG = Config.from_json(VECO)


def batch_of(seed: int = 0) -> dict[str, Any]:
    """Return three pairs of rows, the last of which only fills the batch up."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(5, 15, (3, 2, 6)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[0, 1, 4:] = mask[1, 0, 3:] = mask[2] = 0
    features = {"input_ids": ids * mask, "input_mask": mask, "segment_ids": np.zeros_like(ids)}
    batch = {**features, "label_ids": np.array([2, 0, 0], np.int32)}
    return {name: ops.convert_to_tensor(value) for name, value in batch.items()}


def swapped(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value if name == "label_ids" else value[:, ::-1] for name, value in batch.items()}


def model_of(task: PlugInTask) -> keras.Model:
    model = task.build_model()
    generator = np.random.default_rng(1)
    for weight in model.trainable_variables:
        weight.assign(generator.normal(scale=0.5, size=weight.shape).astype(np.float32))
    return model


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_features_are_both_streams_of_either_language():
    task, batch = PlugInTask(CONFIG, 3), batch_of()
    model = model_of(task)
    body = {name: np.asarray(value) for name, value in model.backbone(two_sides(batch)).items() if "output" in name}
    weights = {name: np.asarray(value) for name, value in named_variables(model).items()}
    assert weights["crossed_pooler/kernel"].shape == (2 * CONFIG.hidden_size, CONFIG.hidden_size)
    found = []
    for side in ("", "other_"):
        features = np.concatenate([body[f"{side}sequence_output"][:, 0], body[f"{side}crossed_output"][:, 0]], axis=-1)
        hidden = np.tanh(features @ weights["crossed_pooler/kernel"] + weights["crossed_pooler/bias"])
        found.append(softmax(hidden @ weights["classifier/kernel"] + weights["classifier/bias"]))
    predicted = np.asarray(task.predictions(model, batch)["probabilities"])
    np.testing.assert_allclose(predicted[:2], found[0][:2], atol=1e-5)
    # What is predicted of the other is what it has as the first.
    other = np.asarray(task.predictions(model, swapped(batch))["probabilities"])
    np.testing.assert_allclose(other[:2], found[1][:2], atol=1e-5)
    assert np.abs(other[:2] - predicted[:2]).max() > 1e-3
    # The loss is the mean over both languages of the pairs that are there.
    losses, metrics = task.terms(model, batch, seed=ops.convert_to_tensor(np.zeros(2, np.uint32)), training=False)
    total, weight = (float(value) for value in losses["classification"])
    expected = -sum(np.log(each[row, label]) for each in found for row, label in ((0, 2), (1, 0)))
    assert (total, weight) == (pytest.approx(expected, rel=1e-4), 4)
    assert float(task.normalizers(batch)["classification"]) == 4
    right, count = (float(value) for value in metrics["accuracy"])
    assert (right, count) == (sum(each[row].argmax() == label for each in found for row, label in ((0, 2), (1, 0))), 4)


def test_the_translation_changes_what_is_predicted_and_fillings_do_not():
    task, batch = PlugInTask(CONFIG, 3), batch_of()
    model = model_of(task)
    before = np.asarray(task.predictions(model, batch)["probabilities"])
    changed = {name: np.array(value) for name, value in batch.items()}
    changed["input_ids"][0, 1, 0] = 5 + (changed["input_ids"][0, 1, 0] - 4) % 10
    changed["input_ids"][1, 0, 3:] = 7  # behind the end of the text
    after = np.asarray(
        task.predictions(model, {n: ops.convert_to_tensor(v) for n, v in changed.items()})["probabilities"]
    )
    assert np.abs(after[0] - before[0]).max() > 1e-4
    np.testing.assert_allclose(after[1], before[1], atol=1e-6)


def test_a_regularizer_and_a_model_without_cross_attention_are_refused():
    with pytest.raises(UsageError, match="two languages that read each other"):
        PlugInTask(CONFIG, 3, regularizers=[RDrop(1.0)])
    with pytest.raises(UsageError, match='--plug_in: a model of family "veco" with cross_attention false'):
        PlugInTask(Config.from_json({**VECO, "cross_attention": False}), 3)
    # Plugged out the same config is an ordinary classifier.
    plugged_out = named_variables(ClassificationTask(CONFIG, 3).build_model())
    assert not any("crossed_pooler" in name for name in plugged_out)
