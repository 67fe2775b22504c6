"""Laws of the device halves of regression, multilabel, choice and matching: what may not change a loss or a score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import pytest
from absl.app import UsageError
from kind_files import CONFIG

from modeling import Computation, Config
from modeling.losses import cross_entropy
from tasks.choice import ChoiceTask
from tasks.matching import MatchingTask, alike, in_batch
from tasks.multilabel import MultilabelTask
from tasks.regression import RegressionTask
from tasks.regularization import Adversarial, RDrop

pytestmark = pytest.mark.slow

STILL: Any = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SHAPE = Config.from_json({**CONFIG, **STILL})
SEED = np.array([1, 2], "uint32")
COMPUTATION = Computation(seed=7)


def features(lengths: Any, length: int = 6) -> dict[str, Any]:
    """Return random features of rows of these lengths, int32 [..., L]."""
    lengths = np.array(lengths)
    mask = (np.arange(length) < lengths[..., None]).astype(np.int32)
    ids = np.random.default_rng(3).integers(1, 15, mask.shape).astype(np.int32) * mask
    return {"input_ids": ids, "input_mask": mask, "segment_ids": np.zeros_like(mask)}


def tensors(batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {name: keras.ops.convert_to_tensor(value) for name, value in batch.items()}


def terms(task: Any, model: Any, batch: Mapping[str, np.ndarray], *, training: bool = False) -> dict[str, float]:
    losses, metrics = task.terms(model, tensors(batch), seed=SEED, training=training)
    counts = task.normalizers(tensors(batch))
    for name, (_, weight) in losses.items():
        if training or name not in ("r_drop", "adversarial"):
            assert float(weight) == float(counts[name])
    return {name: float(total) / max(float(weight), 1.0) for name, (total, weight) in (losses | metrics).items()}


def predicted(task: Any, model: Any, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in task.predictions(model, tensors(batch)).items()}


def rows(batch: Mapping[str, np.ndarray], chosen: Any) -> dict[str, np.ndarray]:
    return {name: value[chosen] for name, value in batch.items()}


def close(one: Any, two: Any) -> None:
    np.testing.assert_allclose(one, two, rtol=2e-5, atol=2e-6)


@pytest.fixture(scope="module")
def choices() -> tuple[ChoiceTask, Any, dict[str, np.ndarray]]:
    task = ChoiceTask(SHAPE, classifier_dropout=0.0, computation=COMPUTATION)
    batch = {**features([[6, 3, 5], [4, 2, 0], [0, 0, 0]]), "label_ids": np.array([2, 1, 0], np.int32)}
    return task, task.build_model(), batch


def test_a_choice_that_is_not_there_has_no_probability_and_changes_nothing(choices: Any):
    task, model, batch = choices
    found, losses = predicted(task, model, batch)["probabilities"], terms(task, model, batch)
    close(found[:2].sum(axis=1), 1)
    assert found[1, 2] == 0
    assert np.isfinite(found).all()
    pad = {name: np.pad(x, [(0, 0), (0, 2), (0, 0)]) for name, x in batch.items() if x.ndim == 3}
    padded = {**pad, "label_ids": batch["label_ids"]}
    close(predicted(task, model, padded)["probabilities"][:2, :3], found[:2])
    assert terms(task, model, padded) == pytest.approx(losses, rel=1e-5)
    alone = rows({name: x[:, :2] if x.ndim == 3 else x for name, x in batch.items()}, [1])
    close(predicted(task, model, alone)["probabilities"][0], found[1, :2])


def test_choices_in_another_order_have_their_probabilities_in_that_order(choices: Any):
    task, model, batch = choices
    order = [2, 0, 1]
    moved = {name: x[:, order] if x.ndim == 3 else x for name, x in batch.items()}
    moved["label_ids"] = np.array([0, 2, 0], np.int32)
    first = rows(moved, [0])
    close(predicted(task, model, first)["probabilities"][0], predicted(task, model, batch)["probabilities"][0, order])
    assert terms(task, model, first) == pytest.approx(terms(task, model, rows(batch, [0])), rel=1e-5)


def test_the_loss_of_a_choice_is_the_cross_entropy_of_its_probability(choices: Any):
    task, model, batch = choices
    found = predicted(task, model, batch)["probabilities"]
    assert terms(task, model, batch)["choice"] == pytest.approx(-np.log([found[0, 2], found[1, 1]]).mean(), rel=1e-5)


@pytest.mark.parametrize("regularizer", [RDrop(1.0), Adversarial(1.0, sigma=1e-2)], ids=lambda each: each.name)
def test_techniques_compare_the_distributions_over_choices(regularizer: Any, choices: Any):
    _, model, batch = choices
    task = ChoiceTask(
        Config.from_json({**CONFIG, **STILL}),
        classifier_dropout=0.0,
        computation=COMPUTATION,
        regularizers=[regularizer],
    )
    found = terms(task, model, batch, training=True)
    # Without dropout a second pass is the first one; a perturbation moves it.
    assert found[regularizer.name] == pytest.approx(0, abs=1e-5)
    if regularizer.name == "adversarial":
        assert found[regularizer.name] > 0
    assert np.isfinite(list(found.values())).all()
    assert regularizer.name in terms(task, model, batch)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda **k: RegressionTask(SHAPE, **k), "a regression"),
        (lambda **k: MultilabelTask(SHAPE, 3, **k), "a task of several labels a text"),
        (lambda **k: MatchingTask(SHAPE, **k), "a match of two texts"),
    ],
)
def test_what_has_no_distribution_refuses_to_compare_them(make: Any, what: str):
    with pytest.raises(UsageError, match=rf"--r_drop_weight=2: {what} has no distribution over classes to compare"):
        make(regularizers=[RDrop(2.0)])
    make(regularizers=[RDrop(0.0)])


def test_errors_and_label_losses_are_numpys():
    batch = {**features([6, 3, 5, 0]), "label_ids": np.array([1.5, -2, 0, 9], np.float32)}
    task = RegressionTask(SHAPE, classifier_dropout=0.0, computation=COMPUTATION)
    model = task.build_model()
    scores = predicted(task, model, batch)["score"]
    found = terms(task, model, batch)
    assert found["squared_error"] == pytest.approx(np.square(scores - batch["label_ids"])[:3].mean(), rel=1e-5)
    assert found["absolute_error"] == pytest.approx(np.abs(scores - batch["label_ids"])[:3].mean(), rel=1e-5)
    labels = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [1, 1, 1]], np.int32)
    batch["label_ids"] = labels
    task = MultilabelTask(SHAPE, 3, classifier_dropout=0.0, computation=COMPUTATION)
    model = task.build_model()
    chances = predicted(task, model, batch)["probabilities"]
    expected = -np.log(np.where(labels, chances, 1 - chances))[:3].mean()
    assert terms(task, model, batch)["labels"] == pytest.approx(expected, rel=1e-5)
    right = ((chances >= 0.5) == labels)[:3].all(axis=1).mean()
    assert terms(task, model, batch)["subset_accuracy"] == pytest.approx(right)
    # What is predicted of a row does not depend on the others.
    close(predicted(task, model, rows(batch, [1]))["probabilities"][0], chances[1])


PAIRS = {**features([[6, 3], [5, 2], [4, 4], [0, 0]]), "label_ids": np.array([1, 0, 1, 0], np.float32)}


@pytest.mark.parametrize(("pooling", "layer"), [("mean", -1), ("cls", -1), ("mean", 0), ("cls", 1)])
def test_vectors_are_pooled_states_of_length_one(pooling: str, layer: int):
    task = MatchingTask(SHAPE, pooling=pooling, pooling_layer=layer, classifier_dropout=0.0, computation=COMPUTATION)
    model = task.build_model()
    found = predicted(task, model, PAIRS)
    flat = {name: x.reshape(-1, 6) for name, x in PAIRS.items() if x.ndim == 3}
    outputs = model(tensors(flat))
    states = np.asarray(outputs["sequence_output"] if layer < 0 else outputs["hidden_states"][layer])
    weights = flat["input_mask"][..., None] / np.maximum(flat["input_mask"].sum(axis=1), 1)[:, None, None]
    pooled = states[:, 0] if pooling == "cls" else (states * weights).sum(axis=1)
    expected = pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
    close(found["embedding_a"][:3], expected[0:6:2])
    close(found["embedding_b"][:3], expected[1:6:2])
    assert np.isfinite(found["embedding_a"]).all()
    # A pair alone has the same vectors, and the sides may change places.
    close(predicted(task, model, rows(PAIRS, [1]))["embedding_b"][0], found["embedding_b"][1])
    swapped = {name: x[:, ::-1] if x.ndim == 3 else x for name, x in PAIRS.items()}
    close(predicted(task, model, swapped)["embedding_a"], found["embedding_b"])


def test_layers_that_are_not_there_are_refused():
    with pytest.raises(UsageError, match=r"pooling_layer 9: the model has 1 layers; expected 0 to 1, or from -1"):
        MatchingTask(SHAPE, pooling_layer=9).build_model()


def test_in_batch_loss_is_numpys_and_symmetric():
    task = MatchingTask(SHAPE, temperature=0.2, classifier_dropout=0.0, computation=COMPUTATION)
    model = task.build_model()
    found = predicted(task, model, PAIRS)
    scores = found["embedding_a"][:3].astype(float) @ found["embedding_b"][:3].T.astype(float) / 0.2
    forth = np.log(np.exp(scores).sum(axis=1)) - np.diag(scores)
    back = np.log(np.exp(scores).sum(axis=0)) - np.diag(scores)
    losses = terms(task, model, PAIRS)
    assert losses["in_batch"] == pytest.approx((forth + back).mean() / 2, rel=1e-5)
    assert losses["in_batch_accuracy"] == pytest.approx((scores.argmax(axis=1) == np.arange(3)).mean())
    swapped = {name: x[:, ::-1] if x.ndim == 3 else x for name, x in PAIRS.items()}
    assert terms(task, model, swapped)["in_batch"] == pytest.approx(losses["in_batch"], rel=1e-5)
    # Rows that fill up are nobody's negatives, and the order of the pairs does not matter.
    assert terms(task, model, rows(PAIRS, [2, 0, 1]))["in_batch"] == pytest.approx(losses["in_batch"], rel=1e-5)
    eye = keras.ops.eye(2)
    nobody = keras.ops.zeros((2, 2), "bool")
    (total, count) = in_batch(eye, eye, keras.ops.ones(2), 0.5, nobody)[0]["in_batch"]
    assert float(total) / float(count) == pytest.approx(np.log1p(np.exp(-2)), rel=1e-5)


def test_a_text_that_matches_too_is_no_negative():
    task = MatchingTask(SHAPE, temperature=0.2, classifier_dropout=0.0, computation=COMPUTATION)
    model = task.build_model()
    batch = {name: x.copy() for name, x in PAIRS.items()}
    for name in ("input_ids", "input_mask", "segment_ids"):
        batch[name][2, 1] = batch[name][0, 1]
    found = predicted(task, model, batch)
    scores = np.exp(found["embedding_a"][:3].astype(float) @ found["embedding_b"][:3].T.astype(float) / 0.2)
    counted = scores * [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    losses = [np.log(counted.sum(axis=axis)) - np.log(np.diag(scores)) for axis in (0, 1)]
    assert terms(task, model, batch)["in_batch"] == pytest.approx(np.mean(losses), rel=1e-5)
    ids = np.array([[[1, 2], [3, 4]], [[1, 2], [5, 6]], [[7, 8], [5, 6]], [[5, 6], [1, 2]]])
    expected = np.array([[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(alike(keras.ops.convert_to_tensor(ids))), expected)


def test_graded_pairs_learn_the_scaled_score():
    task = MatchingTask(SHAPE, score_range=(-1.0, 3.0), classifier_dropout=0.0, computation=COMPUTATION)
    model = task.build_model()
    found = predicted(task, model, PAIRS)
    cosines = (found["embedding_a"] * found["embedding_b"]).sum(axis=1)[:3]
    expected = np.square(cosines - (PAIRS["label_ids"][:3] + 1) / 4).mean()
    assert terms(task, model, PAIRS)["squared_error"] == pytest.approx(expected, rel=1e-5)


def test_a_missing_choice_is_no_class_to_a_smoothed_loss_either(choices: Any):
    logits = keras.ops.convert_to_tensor(np.array([[1.0, 2.0, float(np.finfo(np.float32).min) / 2]], "float32"))
    labels, weights = np.array([1], np.int32), np.ones(1, np.float32)
    with_gap, _ = cross_entropy(logits, labels, weights, 0.1)
    without, _ = cross_entropy(keras.ops.slice(logits, (0, 0), (1, 2)), labels, weights, 0.1)
    assert float(with_gap) == pytest.approx(float(without), rel=1e-6)
