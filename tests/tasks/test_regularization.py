"""Laws of R-Drop and of the adversarial loss, on any backend; then within a training step."""

import dataclasses

import keras
import numpy as np
import pytest
from absl.app import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st

from ground.tensors import ops
from modeling import Computation, Config
from modeling.differentiation import gradient
from modeling.randomness import fold_in
from tasks.classification import ClassificationTask
from tasks.regularization import Adversarial, Passes, RDrop, symmetric_divergence

CONFIG = Config(
    family="albert",
    sharing="all",
    vocab_size=30,
    hidden_size=8,
    embedding_size=4,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=8,
    initializer_range=0.5,
)
CALM = dataclasses.replace(CONFIG, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
KEY = np.array([3, 9], "uint32")


def batch(examples=6, seed=0):
    rng = np.random.default_rng(seed)
    mask = np.ones((examples, 7), np.int32)
    mask[1, 4:], mask[-1] = 0, 0  # the last row only fills up the batch
    return {
        "input_ids": rng.integers(0, 30, (examples, 7), dtype=np.int32) * mask,
        "input_mask": mask,
        "segment_ids": np.zeros((examples, 7), np.int32),
        "label_ids": rng.integers(0, 3, examples, dtype=np.int32),
    }


def task(*regularizers, config=CALM, dropout=0.0, num_labels=3):
    return ClassificationTask(
        config, num_labels, classifier_dropout=dropout, regularizers=regularizers, computation=Computation(seed=1)
    )


def losses(task, training=True, key=KEY):
    found, _ = task.terms(task.build_model(), batch(), seed=key, training=training)
    return {name: (float(total), float(weight)) for name, (total, weight) in found.items()}


def numpy_divergence(a, b):
    p, q = (np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True) for x in (a, b))
    return (p * np.log(p / q)).sum(axis=-1) + (q * np.log(q / p)).sum(axis=-1)


def test_known_answer_of_the_released_divergence():
    a, b = np.array([[0.0, 1.0]], "float32"), np.array([[1.0, 0.0]], "float32")
    key = ops.convert_to_tensor(KEY)
    divergence, more = Adversarial()(
        Passes(a, lambda key, noise: b + 0 * ops.sum(noise), symmetric_divergence, 2, (1, 2, 3), key)
    )
    assert float(divergence[0]) == pytest.approx(0.4621, abs=5e-5)
    assert more == []
    # R-Drop halves the same sum for its two directions, whatever the number of classes.
    divergence, more = RDrop(1.0)(Passes(a, lambda key, noise: b, symmetric_divergence, 2, (1, 2, 3), key))
    assert float(divergence[0]) == pytest.approx(0.4621, abs=5e-5)
    np.testing.assert_array_equal(more[0], b)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 5).flatmap(lambda c: st.tuples(*[st.lists(st.floats(-5, 5, width=32), min_size=c, max_size=c)] * 2)),
    st.floats(-50, 50),
)
def test_divergence_is_symmetric_not_negative_blind_to_shifts_and_numpy_agrees(rows, shift):
    a, b = (np.array([row], "float32") for row in rows)
    found = float(symmetric_divergence(a, b)[0])
    assert found == pytest.approx(float(numpy_divergence(a.astype(float), b.astype(float))[0]), abs=1e-4)
    assert found >= 0
    assert found == float(symmetric_divergence(b, a)[0])
    assert found == pytest.approx(float(symmetric_divergence(a + np.float32(shift), b)[0]), abs=1e-3)
    assert float(symmetric_divergence(a, a)[0]) == 0


LENGTHS = st.just(0.0) | st.floats(1e-9, 1e-2)


@settings(max_examples=50, deadline=None)
@given(LENGTHS, LENGTHS, st.integers(0, 99), st.sampled_from([1e-20, 1.0, 1e20]))
def test_the_step_never_exceeds_its_bound_and_is_blind_to_the_gradients_scale(length, bound, seed, scale):
    gradient = np.random.default_rng(seed).normal(size=(3, 4, 2)).astype("float32")
    gradient[1] = 0
    adversarial = Adversarial(step=length, bound=bound)
    step = ops.convert_to_numpy(adversarial.step_along(ops.convert_to_tensor(gradient * np.float32(scale))))
    assert np.abs(step).max() <= np.float32(bound)
    largest = np.abs(step).max(axis=(1, 2))
    np.testing.assert_allclose(largest, [min(length, bound), 0, min(length, bound)], rtol=1e-6)
    np.testing.assert_allclose(step, ops.convert_to_numpy(adversarial.step_along(gradient)), rtol=1e-5, atol=1e-30)
    assert (np.sign(step) * np.sign(gradient) >= 0).all()


def test_the_adversarial_step_equals_numpys():
    """A model whose logits are linear in the noise; what it is called with is written down."""
    rng = np.random.default_rng(2)
    before, mixing = rng.normal(size=(2, 3)), rng.normal(size=(2, 4, 5, 3))
    seen = []

    def logits_of(key, noise):
        if keras.config.backend() != "jax" or "Tracer" not in type(noise).__name__:
            seen.append((ops.convert_to_numpy(key), ops.convert_to_numpy(noise)))
        return ops.convert_to_tensor(before, "float32") + ops.einsum(
            "ble,blec->bc", noise, ops.convert_to_tensor(mixing, "float32")
        )

    key = ops.convert_to_tensor(KEY)
    adversarial = Adversarial(sigma=0.01, step=0.05, bound=0.03)
    clean = ops.convert_to_tensor(before + 1.0 * rng.normal(size=(2, 3)), "float32")
    passes = Passes(clean, logits_of, symmetric_divergence, 3, (2, 4, 5), key)
    divergence, _ = adversarial(passes)
    last_key, last = seen[-1]
    if keras.config.backend() == "jax":
        return  # the first pass is only traced there
    first_key, noise = seen[0]
    assert not (first_key == last_key).all()
    assert 0.005 < noise.std() < 0.015
    a = np.asarray(passes.logits, "float64")

    def movement(x):
        return numpy_divergence(a, before + np.einsum("ble,blec->bc", x, mixing)).sum()

    gradient = np.zeros_like(mixing[..., 0])
    for index in np.ndindex(gradient.shape):
        shift = np.zeros_like(gradient)
        shift[index] = 1e-5
        gradient[index] = (movement(noise + shift) - movement(noise - shift)) / 2e-5
    scaled = gradient / np.abs(gradient).max(axis=(1, 2), keepdims=True)
    wanted = np.clip(0.05 * scaled, -0.03, 0.03)
    np.testing.assert_allclose(last - noise, wanted, atol=2e-6)
    assert (np.abs(wanted) == 0.03).any()
    assert (np.abs(wanted) < 0.03).any()
    wanted = numpy_divergence(a, before + np.einsum("ble,blec->bc", last.astype("float64"), mixing)) / 3
    np.testing.assert_allclose(ops.convert_to_numpy(divergence), wanted, rtol=1e-4)


def test_the_adversarial_loss_moves_the_clean_prediction_too():
    """The gradient of the loss with respect to the logits of the ordinary pass, by finite differences in float64."""
    rng = np.random.default_rng(3)
    clean, other = rng.normal(size=(2, 4)), rng.normal(size=(2, 4))
    after = ops.convert_to_tensor(other, "float32")

    def loss(logits):
        passes = Passes(
            logits, lambda key, noise: after + 0 * ops.sum(noise), symmetric_divergence, 4, (2, 3, 5),
            ops.convert_to_tensor(KEY),
        )  # fmt: skip
        return ops.sum(Adversarial()(passes)[0])

    found = ops.convert_to_numpy(gradient(loss, ops.convert_to_tensor(clean, "float32")))
    expected = np.zeros_like(clean)
    for index in np.ndindex(clean.shape):
        shift = np.zeros_like(clean)
        shift[index] = 1e-6
        ends = [numpy_divergence(clean + sign * shift, other).sum() / 4 for sign in (1, -1)]
        expected[index] = (ends[0] - ends[1]) / 2e-6
    assert np.abs(expected).min() > 1e-4
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("config", [CALM, CONFIG])
def test_weight_zero_is_the_plain_loss_bit_for_bit(config):
    off = task(RDrop(0.0), Adversarial(0.0), config=config, dropout=0.1)
    assert off.loss_weights == {"classification": 1.0}
    assert losses(off) == losses(task(config=config, dropout=0.1))


def test_without_dropout_both_passes_agree():
    found = losses(task(RDrop(4.0)))
    assert found["r_drop"] == (0.0, 5.0)
    assert found["classification"] == losses(task())["classification"]


@pytest.mark.slow
def test_dropout_masks_of_the_passes_differ_and_follow_from_the_key():
    rich = task(RDrop(1.0), Adversarial(), config=CONFIG, dropout=0.1)
    found, plain = losses(rich), losses(task(config=CONFIG, dropout=0.1))
    assert rich.loss_weights == {"classification": 1.0, "r_drop": 1.0, "adversarial": 1.0}
    assert found["r_drop"][0] > 1e-3
    assert found["adversarial"][0] > 1e-3
    assert found["classification"][0] != plain["classification"][0]
    assert {weight for _, weight in found.values()} == {5.0}
    assert found == losses(rich)
    assert found != losses(rich, key=np.asarray(ops.convert_to_numpy(fold_in(KEY, 1))))


def test_a_step_moves_predictions_more_than_the_noise_does():
    def moved(**values):
        return losses(task(Adversarial(sigma=1e-3, **values)))["adversarial"][0]

    assert moved(step=0.05, bound=1e-2) > 3 * moved(step=0.0) > 0
    assert losses(task(Adversarial(sigma=0.0, step=0.05, bound=1e-2)))["adversarial"][0] == 0


def test_evaluation_has_none_of_them():
    found = losses(task(RDrop(1.0), Adversarial(), config=CONFIG, dropout=0.1), training=False)
    assert found.pop("r_drop") == found.pop("adversarial") == (0.0, 0.0)
    assert found == losses(task(config=CONFIG, dropout=0.1), training=False)


@pytest.mark.parametrize("regularizer", [RDrop(0.5), Adversarial(0.5)])
def test_regression_has_no_distribution_to_compare(regularizer):
    with pytest.raises(UsageError) as error:
        task(regularizer, num_labels=1)
    name = regularizer.name
    assert str(error.value) == (
        f"--{name}_weight=0.5: a regression has no distribution over classes to compare; set --{name}_weight=0 or use "
        "a task with two labels or more"
    )
