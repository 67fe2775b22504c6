"""Hidden states and attention of a teacher: NumPy's distances, no padding, projections that nobody loads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from absl.app import UsageError

from conversion.loading import load_into
from conversion.readers import read_checkpoint
from conversion.writers import write_ours
from ground.tensors import named_variables, ops
from modeling import ClassifierModel, Computation, Config
from modeling.scaffold import scaffolded
from tasks.classification import ClassificationTask
from tasks.distillation import ATTENTION, HIDDEN, Distillation, DistilledTask
from tasks.layer_distillation import attention_distance, hidden_distance, layer_pairs

SMALL = Config(
    family="bert",
    vocab_size=15,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=8,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    initializer_range=0.3,
)
LARGE = dataclasses.replace(
    SMALL, family="albert", sharing="all", hidden_size=12, embedding_size=4, num_hidden_layers=3, num_attention_heads=3
)
PRELN = dataclasses.replace(LARGE, family="albert_zh", ln_type="preln", num_attention_heads=2)
SEED = np.array([1, 2], "uint32")
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], np.int32)
BATCH = {
    "input_ids": np.random.default_rng(3).integers(1, 15, MASK.shape).astype(np.int32) * MASK,
    "input_mask": MASK,
    "segment_ids": 0 * MASK,
    "label_ids": np.array([1, 0, 0], np.int32),
}


class Trained:
    """A teacher with the weights that its seed gives."""

    def __init__(self, config: Config, seed: int):
        self.config = config
        self.task = ClassificationTask(config, 2, classifier_dropout=0.0, computation=Computation(seed=seed))

    def build(self) -> keras.Model:
        return self.task.build_model()


def taught(teacher: Config, seed: int = 5, **settings: Any) -> DistilledTask:
    student = ClassificationTask(SMALL, 2, classifier_dropout=0.0, computation=Computation(seed=1))
    task = Distillation(Trained(teacher, seed), **settings)(student)
    task.companions()
    return task


def losses(task: Any, model: Any, *, training: bool = True) -> dict[str, float]:
    batch = {name: ops.convert_to_tensor(value) for name, value in BATCH.items()}
    found, _ = task.terms(model, batch, seed=SEED, training=training)
    counts = task.normalizers(batch)
    for name, (_, weight) in found.items():
        assert not training or float(weight) == float(counts[name]) == 2.0, name
    return {name: float(total) / 2 for name, (total, _) in found.items()}


def test_layers_are_spread_evenly_or_as_they_are_named():
    assert layer_pairs((), 2, 5) == [(0, 0), (1, 3), (2, 5)]
    assert layer_pairs((), 4, 12) == [(0, 0), (1, 3), (2, 6), (3, 9), (4, 12)]
    assert layer_pairs((), 4, 2)[-1] == (4, 2)
    assert layer_pairs(("1:4", "0:0"), 2, 5) == [(1, 4), (0, 0)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("1", "expected STUDENT:TEACHER"),
        ("1:x", "expected STUDENT:TEACHER"),
        ("1:2:3", "expected STUDENT:TEACHER"),
        ("-1:2", "expected STUDENT:TEACHER"),
        ("3:1", "the student has the layers 0 to 2, there is no 3"),
        ("1:6", "the teacher has the layers 0 to 5, there is no 6"),
    ],
)
def test_a_layer_that_is_not_there_is_one_line(given: str, message: str):
    with pytest.raises(UsageError, match=message) as error:
        layer_pairs((given,), 2, 5)
    assert "\n" not in str(error.value)


def test_distances_are_numpys():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 3, 5, 4)), rng.normal(size=(3, 3, 5, 4))
    ours, theirs = ([ops.convert_to_tensor(x, "float32") for x in states] for states in (student, teacher))
    found = ops.convert_to_numpy(hidden_distance(ours, theirs, [(0, 2), (1, 1)], MASK, None))
    for row, count in ((0, 5), (1, 3)):
        wanted = [((student[s, row, :count] - teacher[t, row, :count]) ** 2).mean() for s, t in ((0, 2), (1, 1))]
        assert found[row] == pytest.approx(np.mean(wanted), rel=1e-4)
    looks = [np.exp(rng.normal(size=(3, heads, 5, 5))) for heads in (2, 3)]
    q, p = (x / x.sum(-1, keepdims=True) for x in looks)
    own, same, more = ([ops.convert_to_tensor(x, "float32")] for x in (q, p[:, :2], p))
    one = attention_distance(own, same, MASK)
    wanted = (p[1, :2, :3] * np.log(p[1, :2, :3] / q[1, :, :3])).sum(-1).mean()
    assert float(one[1]) == pytest.approx(wanted, rel=1e-4)
    # Two heads against three: their means.
    other = attention_distance(own, more, MASK)
    means = [x[0].mean(axis=0) for x in (p, q)]
    assert float(other[0]) == pytest.approx((means[0] * np.log(means[0] / means[1])).sum(-1).mean(), rel=1e-4)


@pytest.mark.slow
def test_where_attention_looks_is_what_the_block_computes_with():
    model = ClassifierModel(PRELN, 2, 0.0, Computation(seed=3))
    body: Any = model.backbone
    states = body(BATCH)["hidden_states"]
    mask = body.attention_mask(BATCH)
    for block, weights in enumerate(body.encoder.attention_weights(states, mask, range(3))):
        attention, _ = body.encoder._bricks()[block]
        h = attention.layer_norm(states[block])
        _, value = attention.keys_values(h)
        context = ops.reshape(ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3)), h.shape)
        wanted = attention(states[block], attention_mask=mask)
        found = states[block] + attention.output_projection(context)
        np.testing.assert_allclose(ops.convert_to_numpy(found), ops.convert_to_numpy(wanted), atol=1e-5)


@pytest.mark.slow
def test_an_equal_teacher_is_at_no_distance_and_no_projection_is_needed():
    task = taught(SMALL, seed=1, hidden_weight=1.0, attention_weight=2.0)
    model = task.build_model()
    assert model.scaffold is None
    found = losses(task, model)
    assert found[HIDDEN] == pytest.approx(0, abs=1e-6)
    assert found[ATTENTION] == pytest.approx(0, abs=1e-6)
    assert task.loss_weights == {"classification": 0.5, "distillation": 0.5, HIDDEN: 1.0, ATTENTION: 2.0}
    other = losses(taught(SMALL, seed=2, hidden_weight=1.0, attention_weight=2.0), model)
    assert min(other[HIDDEN], other[ATTENTION]) > 1e-4
    still = losses(task, model, training=False)
    assert still[HIDDEN] == still[ATTENTION] == 0


@pytest.mark.slow
@pytest.mark.parametrize("teacher", [LARGE, PRELN], ids=["wide", "preln"])
def test_another_width_is_reached_by_a_projection_that_no_checkpoint_needs(teacher: Config, tmp_path: Path):
    task = taught(teacher, hidden_weight=1.0, attention_weight=1.0, layers=("0:0", "2:3"))
    model = task.build_model()
    names = named_variables(model)
    assert names["scaffold/kernel"].shape == (8, 12)
    with scaffolded(None):
        plain = ClassifierModel(SMALL, 2, 0.0, Computation(seed=1))
    assert set(names) - set(named_variables(plain)) == {"scaffold/kernel"}
    found = losses(task, model)
    states = [
        [ops.convert_to_numpy(x) for x in each(BATCH)["hidden_states"]]
        for each in (model, task.companions()["teacher"])
    ]
    kernel = ops.convert_to_numpy(ops.copy(names["scaffold/kernel"]))
    wanted = [
        np.mean([((states[0][s][row, :n] @ kernel - states[1][t][row, :n]) ** 2).mean() for row, n in ((0, 5), (1, 3))])
        for s, t in ((0, 0), (2, 3))
    ]
    assert found[HIDDEN] == pytest.approx(np.mean(wanted), rel=1e-3)
    assert found[ATTENTION] > 0
    # Saved with it, read without it; a model that has one takes a checkpoint that has none.
    values = {name: ops.convert_to_numpy(ops.copy(variable)) for name, variable in names.items()}
    write_ours(tmp_path / "saved", SMALL, values)
    checkpoint = read_checkpoint(tmp_path / "saved")
    assert checkpoint.skipped == ["scaffold/kernel"]
    assert set(checkpoint.tensors) == set(named_variables(plain))
    load_into(plain, checkpoint)
    assert load_into(model, checkpoint).missing == ["scaffold/kernel"]
