"""Loss and gradient of every graph against NumPy's forward pass in float64 and its finite differences."""

from collections.abc import Callable

import keras
import numpy as np
import numpy_reference
import pytest
from modeling_cases import CONFIGS, features, without_dropout

from modeling import ClassifierModel, named_variables
from modeling.differentiation import variable_gradients
from tasks.classification import ClassificationTask
from tasks.pretraining import PretrainingTask

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("operation_by_operation")]

KEY = np.array([1, 2], np.uint32)
STEP = 1e-5


def batch_of(config) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(4)
    batch = features(3)
    batch["segment_ids"] %= max(config.type_vocab_size, 1)
    shape = batch["masked_lm_positions"].shape
    return batch | {
        "masked_lm_ids": generator.integers(0, 37, shape, dtype=np.int32),
        "masked_lm_weights": np.array([[1, 0, 1, 1]] * 3, np.float32),
        "next_sentence_labels": np.array([1, 0, 1], np.int32),
        "label_ids": np.array([2, 0, 1], np.int32),
    }


def check(task, config, reference: Callable[..., float]) -> None:
    model, batch = task.build_model(), batch_of(config)
    variables = named_variables(model)
    generator = np.random.default_rng(5)
    for variable in variables.values():
        variable.assign(np.asarray(variable) + 0.2 * generator.standard_normal(variable.shape))
    weights = {name: np.asarray(variable, np.float64) for name, variable in variables.items()}

    def loss(batch):
        losses, _ = task.terms(model, batch, seed=KEY, training=True)
        normalizers = task.normalizers(batch)
        return sum(total / normalizers[name] for name, (total, _) in losses.items())

    tensors = {name: keras.ops.convert_to_tensor(value) for name, value in batch.items()}
    assert float(loss(tensors)) == pytest.approx(reference(config, weights, batch), rel=2e-5)
    found = variable_gradients(loss, list(variables.values()))(tensors)
    for name, gradient in zip(variables, found, strict=True):
        direction = generator.standard_normal(weights[name].shape)
        slope = [
            reference(config, weights | {name: weights[name] + sign * STEP * direction}, batch) for sign in (1, -1)
        ]
        expected = (slope[0] - slope[1]) / (2 * STEP)
        ours = float((np.asarray(gradient, np.float64) * direction).sum())
        # Rounding of float32 grows with the terms that cancel in the sum.
        terms = float(np.abs(np.asarray(gradient) * direction).sum())
        assert ours == pytest.approx(expected, abs=2e-4 * max(terms, 0.05)), name


@pytest.mark.parametrize("name", CONFIGS)
def test_pretraining(name: str):
    config = without_dropout(CONFIGS[name])
    check(PretrainingTask(config, "albert"), config, numpy_reference.pretraining_loss)


@pytest.mark.parametrize("name", ["bert", "albert", "albert_zh", "albert_zh_preln"])
def test_classification(name: str):
    config = without_dropout(CONFIGS[name])
    check(ClassificationTask(config, 3, classifier_dropout=0.0), config, numpy_reference.class_loss)
    assert ("pooled_layer_norm/gamma" in named_variables(ClassifierModel(config, 3))) == (name == "albert_zh_preln")
