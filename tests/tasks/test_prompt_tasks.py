"""Prompts, the device half, on the backend of Keras: scores of words, soft slots, the contrastive loss, anchors.

Expected numbers are NumPy's or of a closed form. `tests/test_on_jax.py` runs all of it on JAX too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from kind_files import CONFIG

from conversion.loading import with_computed
from conversion.readers import Checkpoint
from modeling import Computation, Config, named_variables
from modeling.differentiation import gradient
from modeling.prompt_heads import label_scores, mask_positions, of_length_one
from modeling.soft_prompts import encoded
from tasks.contrastive import ContrastiveTask, contrastive_loss
from tasks.verbalized import VerbalizedTask

pytestmark = pytest.mark.slow

ops: Any = keras.ops
ON_JAX = keras.config.backend() == "jax"
STILL: Any = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SHAPE = Config.from_json({**CONFIG, **STILL})
SEED = np.array([1, 2], "uint32")
WORDS = [[[5]], [[6, 7], [8]], [[9, 10]]]
PROMPT = {"mask_id": 4, "masks": 2, "slots": [], "words": WORDS}
SOFT = {**PROMPT, "slots": [6, -1, 7]}
TEXTS = np.array([[2, 5, 9, 4, 4, 3], [2, 11, 4, 4, 3, 0], [2, 12, 13, 4, 4, 3], [0] * 6], np.int32)


def batch_of(ids: np.ndarray, **more: Any) -> dict[str, Any]:
    found = {"input_ids": ids, "input_mask": (ids > 0).astype(np.int32), "segment_ids": np.zeros_like(ids), **more}
    return {name: ops.convert_to_tensor(value) for name, value in found.items()}


def numbers(value: Any) -> np.ndarray:
    return np.asarray(value)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64) - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def test_masks_are_found_in_their_order():
    assert numbers(mask_positions(ops.convert_to_tensor(TEXTS), 4, 2)).tolist() == [[3, 4], [2, 3], [3, 4], [0, 0]]


def test_labels_are_scored_by_their_words():
    logits = np.random.default_rng(0).normal(size=(3, 2, 15)).astype(np.float32)
    p = log_softmax(logits)
    wanted = np.stack(
        [
            2 * p[:, 0, 5],
            np.log((np.exp(p[:, 0, 6] + p[:, 1, 7]) + np.exp(2 * p[:, 0, 8])) / 2),
            p[:, 0, 9] + p[:, 1, 10],
        ],
        axis=1,
    )
    np.testing.assert_allclose(numbers(label_scores(ops.convert_to_tensor(logits), WORDS)), wanted, rtol=1e-5)


def test_of_words_of_one_token_the_softmax_is_the_paper_s():
    """Restricted to the words of the labels: what other words score makes no difference."""
    logits = np.random.default_rng(1).normal(size=(2, 1, 15)).astype(np.float32)
    words = [[[5]], [[9]], [[7]]]
    found = numbers(ops.softmax(label_scores(ops.convert_to_tensor(logits), words)))
    np.testing.assert_allclose(found, np.exp(log_softmax(logits[:, 0, [5, 9, 7]])), rtol=1e-5)
    logits[:, :, 11] += 3
    np.testing.assert_allclose(
        numbers(ops.softmax(label_scores(ops.convert_to_tensor(logits), words))), found, rtol=1e-4
    )


@pytest.fixture(scope="module")
def verbalized() -> tuple[VerbalizedTask, Any]:
    task = VerbalizedTask(SHAPE, PROMPT, auxiliary_weight=0.25, computation=Computation(seed=7))
    return task, task.build_model()


def test_pet_weighs_labels_and_hidden_tokens(verbalized: Any):
    task, model = verbalized
    hidden = TEXTS.copy()
    hidden[0, 1] = 4
    batch = batch_of(
        TEXTS,
        label_ids=np.array([0, 2, 1, 0], np.int32),
        hidden_ids=hidden,
        hidden_masked_lm_positions=np.array([[1], [0], [0], [0]], np.int32),
        hidden_masked_lm_ids=np.array([[5], [0], [0], [0]], np.int32),
        hidden_masked_lm_weights=np.array([[1], [0], [0], [0]], np.float32),
    )
    assert task.loss_weights == {"classification": 0.75, "auxiliary": 0.25}
    losses, _ = task.terms(model, batch, seed=SEED, training=True)
    chances = numbers(task.predictions(model, batch)["probabilities"])
    np.testing.assert_allclose(chances.sum(axis=1), 1, rtol=1e-5)
    wanted = -np.log([chances[0, 0], chances[1, 2], chances[2, 1]]).sum()
    assert float(losses["classification"][0]) == pytest.approx(wanted, rel=1e-4)
    assert float(losses["classification"][1]) == 3
    counts = task.normalizers(batch)
    assert [float(counts[name]) for name in ("classification", "auxiliary")] == [3, 1]
    masked = batch_of(hidden, masked_lm_positions=np.array([[1], [0], [0], [0]], np.int32))
    scores = log_softmax(numbers(model(masked, scores_only=True)["masked_lm_logits"]))
    assert float(losses["auxiliary"][0]) == pytest.approx(-scores[0, 0, 5], rel=1e-4)
    assert (
        "auxiliary" not in task.terms(model, batch_of(TEXTS, label_ids=batch["label_ids"]), seed=SEED, training=True)[0]
    )


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def lstm_in_numpy(x: np.ndarray, kernel: np.ndarray, recurrent: np.ndarray, bias: np.ndarray) -> np.ndarray:
    size = len(recurrent)
    h, c, states = np.zeros(size), np.zeros(size), []
    for row in x:
        i, f, g, o = np.split(row @ kernel + h @ recurrent + bias, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.array(states)


def encoded_in_numpy(vectors: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    x = vectors
    for layer in (0, 1):
        parts = {
            side: [weights[f"lstm_{layer}_{side}/{name}"] for name in ("kernel", "recurrent_kernel", "bias")]
            for side in ("forward", "backward")
        }
        backward = lstm_in_numpy(x[::-1], *parts["backward"])[::-1]
        x = np.concatenate([lstm_in_numpy(x, *parts["forward"]), backward], axis=1)
    x = np.maximum(x @ weights["mlp_0/kernel"] + weights["mlp_0/bias"], 0)
    return x @ weights["mlp_1/kernel"] + weights["mlp_1/bias"]


@pytest.fixture(scope="module")
def with_encoder() -> tuple[VerbalizedTask, Any, dict[str, np.ndarray]]:
    task = VerbalizedTask(SHAPE, SOFT, prompt_encoder="lstm", computation=Computation(seed=7))
    model = task.build_model()
    draw = np.random.default_rng(3)
    for name, variable in named_variables(model).items():
        if name.endswith("bias") and name.startswith("soft_prompt"):
            variable.assign(draw.normal(size=variable.shape))
    return task, model, {name: numbers(variable) for name, variable in named_variables(model).items()}


def test_the_prompt_encoder_is_two_layers_of_a_two_way_lstm_and_two_dense_layers(with_encoder: Any):
    _, _, tensors = with_encoder
    weights = {name.removeprefix("soft_prompt/"): value for name, value in tensors.items() if "soft_prompt/" in name}
    vectors = weights.pop("vectors")
    assert vectors.shape == (3, 8)
    assert weights["lstm_0_forward/kernel"].shape == (8, 16)
    assert weights["lstm_1_backward/recurrent_kernel"].shape == (4, 16)
    found = encoded(ops.convert_to_tensor(vectors), {name: ops.convert_to_tensor(x) for name, x in weights.items()})
    np.testing.assert_allclose(numbers(found), encoded_in_numpy(vectors, weights), rtol=1e-4, atol=1e-5)


def test_the_encoder_is_folded_away_and_nothing_changes(with_encoder: Any):
    task, model, tensors = with_encoder
    ids = TEXTS.copy()
    ids[:3, 1] = [15, 16, 17]
    wanted = numbers(task.predictions(model, batch_of(ids))["probabilities"])
    folded = VerbalizedTask(SHAPE, SOFT, computation=Computation(seed=8))
    small = folded.build_model()
    names = named_variables(small)
    assert [name for name in names if "soft_prompt" in name] == ["soft_prompt/vectors"]
    checkpoint = Checkpoint(tensors, None, "ours", Path())
    for name, value in with_computed(checkpoint, small.computed(tensors)).tensors.items():
        names.pop(name).assign(np.asarray(value))
    assert not names
    np.testing.assert_allclose(numbers(folded.predictions(small, batch_of(ids))["probabilities"]), wanted, rtol=1e-4)
    # A slot is its vector wherever it stands, and another one is another.
    other = ids.copy()
    other[0, 1] = 16
    moved = numbers(folded.predictions(small, batch_of(other))["probabilities"])
    assert np.abs(moved[0] - wanted[0]).max() > 1e-5
    np.testing.assert_allclose(moved[1:3], wanted[1:3], rtol=1e-4)


def test_slots_begin_as_words_of_a_checkpoint(with_encoder: Any):
    _, model, tensors = with_encoder
    words = {name: value for name, value in tensors.items() if not name.startswith("soft_prompt/")}
    (begun,) = model.computed(words)
    found = begun.function(words["backbone/embeddings/word_embeddings"])
    table = words["backbone/embeddings/word_embeddings"]
    np.testing.assert_array_equal(found[[0, 2]], table[[6, 7]])
    np.testing.assert_array_equal(found[1], tensors["soft_prompt/vectors"][1])
    assert not model.computed(tensors)


def pairs_loss(cosine: float, alike: bool) -> float:
    """Return what the exponent of a pair of this cosine adds, beside one exponent of 0 on the other side."""
    angle = np.arccos(cosine)
    # The third vector makes a pair of exponent 0 with the first: cosine 0.6 of one label, 0.4 of two.
    third = np.arccos(0.4 if alike else 0.6)
    vectors = np.array([[1, 0, 0], [np.cos(angle), np.sin(angle), 0], [np.cos(third), 0, np.sin(third)]], np.float32)
    labels = np.array([0, 0, 1] if alike else [0, 1, 0], np.int32)
    return float(contrastive_loss(ops.convert_to_tensor(vectors), ops.convert_to_tensor(labels), ops.ones(3)))


def pccl_in_numpy(vectors: np.ndarray, labels: np.ndarray, m: float = 0.4, scale: float = 64, k: float = 1) -> float:
    near, far = [], []
    for i in range(len(vectors)):
        for j in range(i + 1, len(vectors)):
            s = float(vectors[i].astype(np.float64) @ vectors[j])
            if labels[i] == labels[j]:
                near.append(-scale * max(0, 1 + m - s) / k * (s - 1 + m))
            else:
                far.append(scale * max(0, s + m) * (s - m))
    if not near or not far:
        return 0.0
    return float(np.logaddexp(0, np.logaddexp.reduce(near) + np.logaddexp.reduce(far)))


@pytest.mark.parametrize(
    ("cosine", "alike", "exponent"),
    [(0.9, True, -9.6), (0.6, True, 0), (0.2, True, 30.72), (0.9, False, 41.6), (0.4, False, 0), (0.2, False, -7.68)],
)
def test_a_pair_has_the_exponent_of_the_released_loss(cosine: float, alike: bool, exponent: float):
    """The rest of the batch is one pair of exponent 0 and one whose cosine is the product, here of two labels."""
    third = 0.4 if alike else 0.6
    s = cosine * third
    beside = 64 * (s + 0.4) * (s - 0.4)
    near, far = (exponent, np.logaddexp(0, beside)) if alike else (0, np.logaddexp(exponent, beside))
    assert pairs_loss(cosine, alike) == pytest.approx(np.logaddexp(0, near + far), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("given", [{}, {"margin": 0.25, "scale": 32.0, "cost": 2.0}])
def test_the_contrastive_loss_is_numpy_s_and_its_weights_have_no_gradient(given: dict[str, float]):
    draw = np.random.default_rng(5)
    raw, labels = draw.normal(size=(6, 4)).astype(np.float32), np.array([0, 1, 2, 0, 1, 0], np.int32)
    vectors = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    m, scale, k = given.get("margin", 0.4), given.get("scale", 64.0), given.get("cost", 1.0)
    tensor, label_ids = ops.convert_to_tensor(vectors), ops.convert_to_tensor(labels)
    found = float(contrastive_loss(tensor, label_ids, ops.ones(6), **given))
    assert found == pytest.approx(pccl_in_numpy(vectors, labels, m, scale, k), rel=1e-4)
    slope = numbers(gradient(lambda x: contrastive_loss(x, label_ids, ops.ones(6), **given), tensor))
    # By hand: d loss = sigmoid(near + far) * (sum of softmax * d exponent), with a held fixed.
    wanted = np.zeros((6, 4))
    sides: dict[bool, list[tuple[float, float, int, int]]] = {True: [], False: []}
    for i in range(6):
        for j in range(i + 1, 6):
            s, alike = float(vectors[i] @ vectors[j]), bool(labels[i] == labels[j])
            a = -scale * max(0, 1 + m - s) / k if alike else scale * max(0, s + m)
            sides[alike].append((a * (s - 1 + m if alike else s - m), a, i, j))
    total = np.sum([np.logaddexp.reduce([each[0] for each in side]) for side in sides.values()])
    for side in sides.values():
        exponents = np.array([each[0] for each in side])
        shares = np.exp(exponents - np.logaddexp.reduce(exponents)) * sigmoid(total)
        for share, (_, a, i, j) in zip(shares, side, strict=True):
            wanted[i] += share * a * vectors[j]
            wanted[j] += share * a * vectors[i]
    np.testing.assert_allclose(slope, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 1, 2]])
def test_a_batch_without_pairs_of_both_sorts_has_no_loss_and_no_gradient(labels: list[int]):
    x = of_length_one(ops.convert_to_tensor(np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)))
    label_ids = ops.convert_to_tensor(np.array(labels, np.int32))
    assert float(contrastive_loss(x, label_ids, ops.ones(3))) == 0
    slope = numbers(gradient(lambda x: contrastive_loss(x, label_ids, ops.ones(3)), x))
    np.testing.assert_array_equal(slope, np.zeros_like(slope))


def test_rows_that_fill_up_a_batch_are_in_no_pair():
    x = of_length_one(ops.convert_to_tensor(np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)))
    label_ids = ops.convert_to_tensor(np.array([0, 1, 0, 0, 1], np.int32))
    some = ops.convert_to_tensor(np.array([1, 1, 1, 0, 0], np.float32))
    assert float(contrastive_loss(x, label_ids, some)) == pytest.approx(
        float(contrastive_loss(x[:3], label_ids[:3], ops.ones(3))), rel=1e-5
    )


def test_a_text_has_the_label_of_its_nearest_anchor():
    prompt = {"mask_id": 4, "masks": 1, "slots": [6], "anchors": 2}
    task = ContrastiveTask(SHAPE, 3, prompt, auxiliary_weight=0.5, computation=Computation(seed=7))
    model = task.build_model()
    (name,) = [each for each in named_variables(model) if each.startswith("anchors/")]
    assert not named_variables(model)[name].trainable
    ids = TEXTS.copy()
    ids[:3, -2] = 15
    batch = batch_of(ids, label_ids=np.array([0, 1, 2, 0], np.int32))
    vectors = numbers(task.predictions(model, batch)["prompt_embedding"])
    np.testing.assert_allclose((vectors[:3] ** 2).sum(axis=1), 1, rtol=1e-5)
    anchors = np.zeros((3, 2, 8), np.float32)
    anchors[0, 0], anchors[2, 1], anchors[0, 1] = vectors[1], vectors[0], -vectors[2]
    named_variables(model)[name].assign(anchors)
    found = numbers(task.predictions(model, batch)["probabilities"])
    cosines = vectors @ anchors.reshape(6, 8).T
    there = np.array([True, True, False, False, False, True])
    best = np.where(there, cosines, -1).reshape(4, 3, 2).max(axis=-1)
    np.testing.assert_allclose(found[:3], np.exp(log_softmax(64 * best))[:3], rtol=1e-3, atol=1e-6)
    assert found[:2].argmax(axis=1).tolist() == [2, 0]
