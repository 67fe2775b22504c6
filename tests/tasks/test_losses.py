"""Laws of the table of losses: weights scale gradients, names and metrics are declared in the order of the terms."""

import dataclasses

import keras
import numpy as np
import pytest
from test_structbert_task import CONFIGS, KEY, make_batch

from data.objectives import OBJECTIVES
from modeling import named_variables
from modeling.differentiation import variable_gradients
from tasks.classification import ClassificationTask
from tasks.losses import LOSSES
from tasks.pretraining import PretrainingTask
from tasks.regularization import Adversarial, RDrop

LOGGED = {"masked_lm": "masked_lm", "word_order": "word_order", "pair": "sentence_structure"}
TENSORS = {name: keras.ops.convert_to_tensor(value) for name, value in make_batch(5).items()}


def gradients(weights: dict[str, float], only: str | None = None) -> dict[str, np.ndarray]:
    """Of the loss that an engine minimises, or of one of its terms."""
    task = PretrainingTask(CONFIGS["albert"], "structbert", weights=weights)
    model = task.build_model()

    def loss(batch):
        losses, _ = task.terms(model, batch, seed=KEY, training=False)
        normalizers = task.normalizers(batch)
        parts = {name: total / normalizers[name] for name, (total, _) in losses.items()}
        return parts[only] if only else sum(task.loss_weights[name] * part for name, part in parts.items())

    variables = named_variables(model)
    found = variable_gradients(loss, list(variables.values()))(TENSORS)
    return {name: np.asarray(value) for name, value in zip(variables, found, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("key", LOGGED)
def test_the_weight_of_a_loss_scales_its_gradient(key: str):
    usual = {"masked_lm": 1.0, "word_order": 1.0, "pair": 1.0}
    once, thrice, alone = gradients(usual), gradients(usual | {key: 3.0}), gradients(usual, LOGGED[key])
    head = "sentence_pair/bias" if key == "pair" else "masked_lm/output_bias"
    assert np.abs(alone[head]).max() > 1e-3
    largest = max(np.abs(value).max() for value in alone.values())
    for name in once:
        np.testing.assert_allclose(thrice[name] - once[name], 2 * alone[name], atol=1e-5 * largest, err_msg=name)


@pytest.mark.parametrize(
    "objective",
    [name for name, row in OBJECTIVES.items() if not (row.continuing or row.streams > 1 or row.across or row.writes)],
)
@pytest.mark.parametrize("weights", [{}, {"word_order": 0.5}])
def test_terms_are_those_declared_in_that_order(objective: str, weights: dict[str, float]):
    task = PretrainingTask(CONFIGS["bert"], objective, weights=weights)
    batch = make_batch(num_labels=2)
    model = task.build_model()
    losses, metrics = task.terms(model, batch, seed=KEY, training=True)
    assert list(losses) == list(task.loss_weights) == list(task.normalizers(batch))
    assert tuple(metrics) == task.metrics
    assert task.companions() == {}


def test_terms_of_a_classifier_are_those_declared():
    task = ClassificationTask(CONFIGS["bert"], 3, regularizers=[RDrop(1.0), Adversarial(0.5)])
    batch = make_batch()
    batch["label_ids"] = batch["next_sentence_labels"]
    losses, metrics = task.terms(task.build_model(), batch, seed=KEY, training=True)
    assert list(losses) == list(task.loss_weights) == list(task.normalizers(batch))
    assert tuple(metrics) == task.metrics
    assert task.companions() == {}


def test_every_objective_names_losses_that_exist():
    for name, objective in OBJECTIVES.items():
        assert set(objective.losses) <= set(LOSSES), name


def test_dropout_is_drawn_in_training_alone():
    config = dataclasses.replace(CONFIGS["bert"], num_hidden_layers=1, hidden_dropout_prob=0.5)
    task = PretrainingTask(config, "masked_lm")
    model, batch = task.build_model(), make_batch()

    def loss(key: int, training: bool) -> float:
        losses, _ = task.terms(model, batch, seed=np.array([key, 5], np.uint32), training=training)
        return float(losses["masked_lm"][0])

    plain = loss(3, training=False)
    assert loss(4, training=False) == plain
    assert len({plain, loss(3, training=True), loss(4, training=True)}) == 3
