"""A second member of every seam of model and task, added by rows alone: a family, a loss and its head."""

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import pytest
from test_structbert_task import CONFIGS, make_batch

from data.objectives import OBJECTIVES, Objective
from ground.tensors import ops
from modeling import Computation, bert, masks, named_variables
from modeling.body import Backbone
from modeling.computation import Sizes
from modeling.families import FAMILIES, Family
from modeling.layers import Dense
from optimization import Constant, create_optimizer
from tasks.losses import LOSSES, example_weights
from tasks.pretraining import PretrainingTask
from training.tensorflow_engine import TensorFlowEngine

pytestmark = pytest.mark.slow


class Causal(Backbone):
    """A body in which a position sees those before it only: one method differs."""

    def attention_mask(self, features):
        length = features["input_ids"].shape[1]
        padding = super().attention_mask(features)
        causal = masks.causal_mask(length, length)
        return causal if padding is None else ops.logical_and(padding, causal)


class LengthHead:
    """A number for each example."""

    reads_first_only = True

    def __init__(self, config, initialization, computation, body, *, outputs: int):
        self.dense = Dense(config.hidden_size, outputs, initialization, dtype=computation.dtype, name="length")
        self.layers = (self.dense,)

    def __call__(self, outputs, features, body, training):
        return {"length": self.dense(outputs["pooled_output"])}

    def operations(self, sizes: Sizes, body) -> int:
        return self.dense.operations(1)


class LengthLoss:
    """Squared error of the share of real tokens, which `prepare` computes."""

    def __init__(self, objective: Objective, settings):
        self.weights = {"length": settings.weights.get("length", 1.0)}
        self.metrics = ("length_error",)
        self.heads: dict[str, Any] = {"length": partial(LengthHead, outputs=1)}

    def prepare(self, model, batch, seed):
        return {**batch, "real_share": ops.mean(ops.cast(batch["input_mask"], "float32"), axis=1)}

    def normalizers(self, batch):
        return {"length": ops.sum(example_weights(batch))}

    def terms(self, outputs, batch):
        weights = example_weights(batch)
        error = ops.cast(outputs["length"][:, 0], "float32") - batch["real_share"]
        total = ops.sum(weights)
        return (
            {"length": (ops.sum(ops.square(error) * weights), total)},
            {"length_error": (ops.sum(ops.absolute(error) * weights), total)},
        )

    def predictions(self, outputs, batch):
        return {"length": outputs["length"][:, 0]}


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch):
    rows: Any = FAMILIES, LOSSES, OBJECTIVES
    families, losses, objectives = rows
    monkeypatch.setitem(families, "toy", Family(body=Causal, check=bert.check))
    monkeypatch.setitem(losses, "length", LengthLoss)
    row = Objective(paper="nobody's", summary="tokens and lengths", losses=("masked_lm", "length"))
    monkeypatch.setitem(objectives, "toy", row)


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize("computation", [Computation(seed=1), Computation(remat=True), Computation("mixed_bfloat16")])
def test_a_family_and_a_loss_train_by_their_rows(computation: Computation):
    config = dataclasses.replace(CONFIGS["bert"], family="toy")
    task = PretrainingTask(config, "toy", weights={"length": 0.5}, computation=computation)
    assert task.loss_weights == {"masked_lm": 1.0, "length": 0.5}
    assert task.metrics == ("masked_lm_accuracy", "length_error")
    engine = TensorFlowEngine(task, create_optimizer("adamw", Constant(1e-2)), seed=1)
    before = {name: np.asarray(value) for name, value in named_variables(engine.model).items()}
    batches = [make_batch(seed) for seed in (0, 1)]
    for result in engine.train(batches):
        assert {"masked_lm_loss", "length_loss", "length_error", "masked_lm_accuracy"} <= result.keys()
        assert result["loss"] == pytest.approx(result["masked_lm_loss"] + 0.5 * result["length_loss"], rel=1e-5)
    after = named_variables(engine.model)
    for name in ("length/kernel", "masked_lm/output_bias", "backbone/embeddings/word_embeddings"):
        assert np.abs(np.asarray(after[name]) - before[name]).max() > 1e-4, name
    assert {"masked_lm_ids", "length"} == next(iter(engine.predict(batches[:1]))).keys()
    assert engine.model.operations(Sizes(16, scored=4)) > engine.model.backbone.operations(Sizes(16)) > 0


@pytest.mark.usefixtures("toys")
def test_the_method_that_a_family_overrides_is_the_one_that_is_called():
    config = dataclasses.replace(CONFIGS["bert"], family="toy")
    model, batch = PretrainingTask(config, "toy").build_model(), make_batch()
    changed = {**batch, "input_ids": batch["input_ids"].copy()}
    changed["input_ids"][:, 9:] = 5 + (changed["input_ids"][:, 9:] + 1) % 26
    states = [np.asarray(model(each)["sequence_output"]) for each in (batch, changed)]
    np.testing.assert_array_equal(states[0][:, :9], states[1][:, :9])
    assert np.abs(states[0][:, 9:] - states[1][:, 9:]).max() > 1e-2
