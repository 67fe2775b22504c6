"""The loss of next tokens against NumPy, weights that end, and the stage that starts from an encoder's checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from absl.app import UsageError
from test_structbert_task import KEY, SMALL, log_softmax, make_batch

from commands.weights import initialize
from conversion.loading import LoadReport
from conversion.writers import write_ours
from data.objectives import OBJECTIVES
from modeling import Config
from modeling.losses import cross_entropy, smoothed_negative_log_likelihood
from modeling.variables import named_variables
from tasks.kinds import DECODER, PRETRAINING_HEADS
from tasks.losses import LOSSES, Settings
from tasks.pretraining import PretrainingTask, next_tokens_unigram_accuracy
from training.engine import loss_weights_at

PALM = Config(family="palm", ln_type="preln", final_layer_norm=True, num_decoder_layers=1, **SMALL)
COPYING = dataclasses.replace(PALM, family="palm_en", ln_type="postln", final_layer_norm=False, copy="additive")
ENCODER = PALM.encoder


def batch_with_targets(seed: int = 0, rows: int = 4, width: int = 8) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    batch = make_batch(seed, rows)
    del batch["next_sentence_labels"]
    sizes = draw.integers(3, width + 1, rows)
    mask = (np.arange(width) < sizes[:, None]).astype(np.int32)
    ids = draw.integers(5, 31, (rows, width), dtype=np.int32) * mask
    ids[:, 0] = 2
    ids[np.arange(rows), sizes - 1] = 3
    return batch | {"target_ids": ids, "target_mask": mask}


def loss_of(**settings: Any) -> Any:
    return LOSSES["next_tokens"](OBJECTIVES["palm"], Settings(**settings))


def numbers(terms):
    return {name: tuple(float(part) for part in pair) for name, pair in terms.items()}


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_the_loss_is_numpy_s(smoothing: float):
    batch, draw = batch_with_targets(), np.random.default_rng(5)
    logits = draw.normal(0, 3, (4, 7, 31)).astype(np.float32)
    # Rows that pad the vocabulary.
    padded = np.concatenate([logits, np.full((4, 7, 2), -3e38, np.float32)], axis=-1)
    labels, weights = batch["target_ids"][:, 1:], batch["target_mask"][:, 1:]
    log_p = log_softmax(logits.astype(np.float64))
    surprise = -np.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
    smoothed = (1 - smoothing) * surprise - smoothing * log_p.mean(axis=-1)
    expected = (smoothed * weights).sum(), weights.sum()
    right = ((logits.argmax(-1) == labels) * weights).sum(), weights.sum()
    loss = loss_of(label_smoothing=smoothing)
    # Log-probabilities are as good as logits.
    for scores in (logits, padded, log_p.astype(np.float32)):
        losses, metrics = loss.terms({"next_token_logits": keras.ops.convert_to_tensor(scores)}, batch)
        np.testing.assert_allclose(numbers(losses)["next_tokens"], expected, rtol=1e-5)
        np.testing.assert_allclose(numbers(metrics)["next_tokens_accuracy"], right)
    share = keras.ops.convert_to_tensor(smoothing, "float32")
    for scores in (logits, padded):
        closed = smoothed_negative_log_likelihood(keras.ops.convert_to_tensor(scores), labels, share)
        summed = float((np.asarray(closed) * weights).sum())
        assert summed == pytest.approx(float(cross_entropy(scores, labels, weights, smoothing)[0]), rel=1e-5)


def test_padding_counts_nothing_and_parts_add_up():
    loss, batch = loss_of(), batch_with_targets(1)
    halves = [loss.normalizers({name: x[part] for name, x in batch.items()}) for part in (np.s_[:2], np.s_[2:])]
    whole = float(loss.normalizers(batch)["next_tokens"])
    assert whole == batch["target_mask"][:, 1:].sum() == sum(float(half["next_tokens"]) for half in halves)
    zeros = {name: np.zeros_like(value) for name, value in batch.items()}
    assert float(loss.normalizers(zeros)["next_tokens"]) == 0


@pytest.mark.parametrize("objective", [name for name, row in OBJECTIVES.items() if row.continuing])
@pytest.mark.parametrize("config", [PALM, COPYING])
def test_terms_are_those_declared_in_that_order(objective: str, config: Config):
    task = PretrainingTask(config, objective, weights={"word_order": 0.5, "next_tokens": 2.0}, label_smoothing=0.1)
    batch = batch_with_targets(2)
    model = task.build_model()
    losses, metrics = task.terms(model, batch, seed=KEY, training=True)
    assert task.loss_weights == {"masked_lm": 1.0, "word_order": 0.5, "next_tokens": 2.0}
    assert list(losses) == list(task.loss_weights) == list(task.normalizers(batch))
    assert tuple(metrics) == task.metrics
    assert all(np.isfinite(pair).all() for pair in numbers(losses).values())
    predicted = task.predictions(model, batch)
    assert tuple(predicted["next_token_ids"].shape) == (4, 7)
    assert "sentence_pair/bias" not in named_variables(model)


def test_masked_tokens_and_shuffled_words_end_together_and_others_never():
    weights = {"word_order": 0.5, "masked_lm": 2.0}
    task = PretrainingTask(PALM, "plug", weights=weights, until={"masked_lm": 9, "word_order": 9})
    for step, factor in ((0, 1), (8, 1), (9, 0), (10**9, 0)):
        found = loss_weights_at(task, keras.ops.convert_to_tensor(step, "int32"))
        expected = {"masked_lm": 2.0 * factor, "word_order": 0.5 * factor, "next_tokens": 1.0}
        assert {name: float(weight) for name, weight in found.items()} == expected
    plain = PretrainingTask(PALM, "plug", weights={"masked_lm": 0.0}, until={"word_order": 9})
    assert not plain.loss_schedules
    assert loss_weights_at(plain, 0) == {"next_tokens": 1.0}


def without_pair_head(tensors: dict[str, Any]) -> None:
    for name in ("kernel", "bias"):
        del tensors[f"sentence_pair/{name}"]


@pytest.fixture
def stage_one(tmp_path: Path) -> dict[str, Any]:
    """Return a folder with an encoder that learnt StructBERT's objective, and its variables."""
    model = PretrainingTask(ENCODER, "structbert").build_model()
    values = {name: np.asarray(value) for name, value in named_variables(model).items()}
    write_ours(tmp_path, ENCODER, values)
    return {"path": str(tmp_path), "values": values}


@pytest.mark.parametrize("config", [PALM, dataclasses.replace(PALM, copy="attention")])
def test_stage_two_starts_from_an_encoder_and_says_what_is_new(stage_one: dict[str, Any], config: Config):
    model = PretrainingTask(config, "palm").build_model()
    before = {name: np.asarray(value).copy() for name, value in named_variables(model).items()}
    report = initialize(
        model,
        config,
        stage_one["path"],
        allow_missing=(*PRETRAINING_HEADS, *DECODER),
        adjust=without_pair_head,
    )
    copying = "; new: backbone/decoder/* (28)" + (", copy/gate/bias, copy/gate/kernel" if config.copy != "none" else "")
    assert report.endswith(copying), report
    for name, value in named_variables(model).items():
        expected = stage_one["values"].get(name)
        np.testing.assert_array_equal(value, before[name] if expected is None else expected, err_msg=name)


def test_a_decoder_is_new_only_where_it_may_be_and_another_graph_is_refused(stage_one: dict[str, Any], tmp_path: Path):
    model = PretrainingTask(PALM, "palm").build_model()
    with pytest.raises(UsageError, match="is of the BERT graph, the model is the PALM graph"):
        initialize(model, PALM, stage_one["path"], allow_missing=(".*",), allow_unexpected=(".*",))
    bert = dataclasses.replace(ENCODER, family="bert", ln_type="postln", final_layer_norm=False)
    values = {name: np.asarray(x) for name, x in named_variables(PretrainingTask(bert).build_model()).items()}
    write_ours(tmp_path / "bert", bert, values)
    with pytest.raises(UsageError):
        initialize(model, PALM, str(tmp_path / "bert"), allow_missing=DECODER, allow_unexpected=(".*",))
    with pytest.raises(UsageError, match="the model is the English PALM graph"):
        initialize(PretrainingTask(COPYING, "palm").build_model(), COPYING, stage_one["path"], allow_missing=DECODER)


def test_a_report_names_large_groups_once():
    names = [f"backbone/decoder/attention_{k}/bias" for k in range(9)]
    report = LoadReport(["a"], [], ["copy/gate/bias", *names], [*names, "x"], {})
    group = "backbone/decoder/* (9)"
    assert str(report) == f"1 tensors loaded; new: copy/gate/bias, {group}; not used: {group}, x"


def test_the_floor_of_next_tokens_is_the_most_frequent_one():
    ids = np.asarray([[2, 7, 7, 3], [2, 7, 3, 0]])
    batch = {"target_ids": ids, "target_mask": (ids > 0).astype(np.int32)}
    held_out = {"target_ids": np.asarray([[2, 7, 8, 3]]), "target_mask": np.ones((1, 4), np.int32)}
    assert next_tokens_unigram_accuracy([batch, batch], [held_out]) == pytest.approx(1 / 3)


def test_the_floor_without_any_label_is_zero():
    nothing = {"target_ids": np.zeros((2, 4), np.int32), "target_mask": np.zeros((2, 4), np.int32)}
    labelled = {"target_ids": np.asarray([[2, 7, 8, 3]]), "target_mask": np.ones((1, 4), np.int32)}
    assert next_tokens_unigram_accuracy([nothing], [labelled]) == 0
    assert next_tokens_unigram_accuracy([labelled], [nothing]) == 0
