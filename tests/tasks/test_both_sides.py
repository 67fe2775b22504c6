"""VECO's four losses: each is the cross-entropy of one stream at the masked tokens of its text, by one head."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
from absl.app import UsageError

from data.forms import FORMS
from data.schema import padding
from modeling import named_variables
from modeling.accounting import flops_per_example
from modeling.config import Config
from tasks.pretraining import PretrainingTask

CONFIG = Config(
    family="veco",
    vocab_size=30,
    embedding_size=8,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=16,
    type_vocab_size=1,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    cross_attention=True,
    initializer_range=0.5,
)
KEY = np.array([1, 2], np.uint32)
NAMES = ("masked_lm", "other_masked_lm", "crossed", "other_crossed")
B, L, P = 3, 7, 2


@pytest.fixture(scope="module")
def task() -> PretrainingTask:
    return PretrainingTask(CONFIG, "veco", weights={"masked_lm": 2.0, "crossed": 0.5})


@pytest.fixture(scope="module")
def model(task):
    return task.build_model()


def make_batch(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    batch = {}
    for prefix in ("", "other_"):
        lengths = random.integers(4, L + 1, B)
        mask = (np.arange(L) < lengths[:, None]).astype(np.int32)
        batch[f"{prefix}input_ids"] = random.integers(5, 30, (B, L), np.int32) * mask
        batch[f"{prefix}input_mask"] = mask
        batch[f"{prefix}masked_lm_positions"] = np.sort(
            random.permuted(np.tile([1, 2, 3], (B, 1)), axis=1)[:, :P]
        ).astype(np.int32)
        batch[f"{prefix}masked_lm_ids"] = random.integers(5, 30, (B, P), np.int32)
        batch[f"{prefix}masked_lm_weights"] = random.integers(0, 2, (B, P)).astype(np.float32)
        batch[f"{prefix}masked_lm_weights"][:, 0] = 1
    return batch


def swapped(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name.removeprefix("other_") if name.startswith("other_") else f"other_{name}": x for name, x in batch.items()
    }


def means(task, model, batch) -> dict[str, float]:
    losses, metrics = task.terms(model, batch, seed=KEY, training=False)
    return {name: float(total) / float(weight) for name, (total, weight) in (losses | metrics).items()}


def cross_entropy(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return float(-(np.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0] * weights).sum() / weights.sum())


def test_four_losses_are_four_separate_passes(task, model):
    batch = make_batch()
    found = means(task, model, batch)
    outputs = model.backbone(batch)
    for name, side in zip(NAMES, ("", "other_", "", "other_"), strict=True):
        positions, labels, weights = (batch[f"{side}masked_lm_{part}"] for part in ("positions", "ids", "weights"))
        if "crossed" in name:
            states = np.asarray(outputs[f"{side}crossed_output"])
        else:
            # Plugged out: a pass of the one text alone.
            alone = {part: batch[f"{side}{part}"] for part in ("input_ids", "input_mask")}
            states = np.asarray(model.backbone(alone)["sequence_output"])
        chosen = np.stack([states[row, positions[row]] for row in range(B)])
        (head,) = model.heads
        logits = np.asarray(head.scores(chosen, embeddings=model.backbone.embeddings))
        assert found[name] == pytest.approx(cross_entropy(logits, labels, weights), rel=1e-5)
        right = ((logits.argmax(-1) == labels) * weights).sum() / weights.sum()
        assert found[f"{name}_accuracy"] == pytest.approx(right)
        predicted = np.asarray(task.predictions(model, batch)[f"{name}_ids"])
        np.testing.assert_array_equal(predicted, logits.argmax(-1))


def test_what_is_alone_does_not_depend_on_the_other_text_and_what_is_crossed_does(task, model):
    batch, other = make_batch(), make_batch(1)
    found = means(task, model, batch)
    changed = means(
        task, model, batch | {n: x for n, x in other.items() if n in ("other_input_ids", "other_input_mask")}
    )
    assert changed["masked_lm"] == found["masked_lm"]
    assert abs(changed["crossed"] - found["crossed"]) > 1e-4
    assert len({round(found[name], 6) for name in NAMES}) == 4


def test_swapped_sides_swap_their_losses(task, model):
    batch = make_batch()
    here, there = means(task, model, batch), means(task, model, swapped(batch))
    for name in NAMES:
        partner = name.removeprefix("other_") if name.startswith("other_") else f"other_{name}"
        assert there[partner] == pytest.approx(here[name], rel=1e-5)


def test_losses_are_declared_in_their_order_and_padding_weighs_nothing(task, model):
    batch = make_batch()
    losses, metrics = task.terms(model, batch, seed=KEY, training=True)
    assert tuple(losses) == tuple(task.loss_weights) == tuple(task.normalizers(batch)) == NAMES
    assert tuple(metrics) == task.metrics
    assert [*task.loss_weights.values()] == [2.0, 2.0, 0.5, 0.5]
    for name, side in zip(NAMES, ("", "other_", "", "other_"), strict=True):
        assert float(task.normalizers(batch)[name]) == batch[f"{side}masked_lm_weights"].sum()
    nothing = padding(FORMS["two_sides"].schema, {"tokens": L, "predictions": P}, 2)
    filled = {name: np.concatenate([value, nothing[name]]) for name, value in batch.items()}
    padded, _ = task.terms(model, filled, seed=KEY, training=False)
    plain, _ = task.terms(model, batch, seed=KEY, training=False)
    for name in NAMES:
        np.testing.assert_allclose(padded[name], plain[name], rtol=1e-5)


def test_one_head_is_shared_and_cross_attention_is_the_only_addition(model):
    alone = PretrainingTask(CONFIG, "masked_lm").build_model()
    assert named_variables(model).keys() == named_variables(alone).keys()
    heads = {name.split("/")[0] for name in named_variables(model)} - {"backbone"}
    assert heads == {"masked_lm"}
    single = {name: value for name, value in make_batch().items() if not name.startswith("other_")}
    assert keras.ops.shape(model(single)["masked_lm_logits"]) == (B, P, 30)
    assert keras.ops.shape(model(make_batch())["masked_lm_logits"]) == (B, 4 * P, 30)


def test_the_work_of_two_sides_is_counted():
    """Two passes alone, two across, and four times the positions over the vocabulary."""
    one, two = flops_per_example(CONFIG, L, P), flops_per_example(CONFIG, L, 4 * P, 0, L)
    assert 4 * one < two < 6 * one


def test_a_config_without_cross_attention_is_one_line():
    with pytest.raises(UsageError, match=r"reads two texts across, but the config .* has no cross-attention") as error:
        PretrainingTask(dataclasses.replace(CONFIG, cross_attention=False), "veco").build_model()
    assert "\n" not in str(error.value)
