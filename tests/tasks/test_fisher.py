"""Both forms of the Fisher information against NumPy, for a softmax regression whose gradients are known."""

from typing import Any

import keras
import numpy as np
import pytest

from ground.tensors import ops
from modeling.randomness import dropout, fold_in, seeded
from tasks.fisher import fisher_information

CLASSES, WIDTH, EXAMPLES = 3, 5, 12
KERNEL = np.random.default_rng(4).normal(size=(WIDTH, CLASSES)).astype("float32")


class LinearModel(keras.Model):
    def __init__(self):
        super().__init__(name="linear")
        self.classifier = keras.layers.Dense(CLASSES, kernel_initializer="zeros", name="classifier")
        self.classifier.build((None, WIDTH))
        kernel: Any = self.classifier.kernel
        kernel.assign(KERNEL)
        self.built = True

    def call(self, x, training=False):
        return self.classifier(dropout(x, 0.5, training))


class LinearTask:
    def __init__(self):
        self.loss_weights = {"classification": 1.0, "size": 0.5}

    def normalizers(self, batch):
        return {"classification": ops.sum(batch["weights"]), "size": ops.sum(batch["weights"])}

    def terms(self, model, batch, *, seed, training):
        with seeded(seed):
            logits = model(batch["x"], training=training)
        nll = -ops.sum(ops.log_softmax(logits) * ops.one_hot(batch["y"], CLASSES), axis=-1)
        total = ops.sum(nll * batch["weights"])
        # A loss that only training has, as those of tasks/regularization.py.
        size = ops.sum(ops.square(logits)) if training else ops.zeros(())
        return {"classification": (total, ops.sum(batch["weights"])), "size": (size, ops.sum(batch["weights"]))}, {}


def examples(scale=1.0):
    rng = np.random.default_rng(1)
    x = (scale * rng.normal(size=(EXAMPLES, WIDTH))).astype("float32")
    return x, rng.integers(0, CLASSES, EXAMPLES).astype("int32")


def batches(size, scale=1.0):
    x, y = examples(scale)
    for i in range(0, EXAMPLES, size):
        yield {"x": x[i : i + size], "y": y[i : i + size], "weights": np.ones(size, "float32")}


def test_paper_form_is_the_mean_over_examples_of_the_squared_gradient():
    model = LinearModel()
    found = fisher_information(LinearTask(), model, batches(1), ["classifier/kernel", "classifier/bias"])
    x, y = (value.astype("float64") if value.dtype.kind == "f" else value for value in examples())
    logits = x @ KERNEL.astype("float64")
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    error_NC = p - np.eye(CLASSES)[y]
    np.testing.assert_allclose(found["classifier/bias"], (error_NC**2).mean(axis=0), rtol=1e-5)
    wanted = ((x[:, :, None] * error_NC[:, None]) ** 2).mean(axis=0)
    np.testing.assert_allclose(found["classifier/kernel"], wanted, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.01, 30.0])
def test_released_form_squares_clipped_gradients_of_batches_as_trained(scale):
    """Dropout is replayed: its mask is read off the model in the same scope."""
    model, seed = LinearModel(), 2**33 + 5
    found = fisher_information(LinearTask(), model, batches(4, scale), ["classifier/kernel"], released=True, seed=seed)[
        "classifier/kernel"
    ]
    kernel = KERNEL.astype("float64")
    squares = []
    for number, batch in enumerate(batches(4, scale)):
        with seeded(fold_in(np.array([5, 2], "uint32"), number)):
            x = np.asarray(ops.convert_to_numpy(dropout(ops.convert_to_tensor(batch["x"]), 0.5, True)), "float64")
        logits = x @ kernel
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        gradient = x.T @ ((p - np.eye(CLASSES)[batch["y"]]) + 0.5 * 2 * logits) / 4
        norm = np.linalg.norm(gradient)
        assert (norm > 1) == (scale > 1)
        squares.append((gradient / max(norm, 1)) ** 2)
    np.testing.assert_allclose(found, np.mean(squares, axis=0), rtol=2e-4, atol=1e-12)


def test_no_data_is_our_bug():
    with pytest.raises(ValueError, match="no batches"):
        fisher_information(LinearTask(), LinearModel(), [], ["classifier/kernel"])
