"""Laws of distillation: the loss is NumPy's, whatever the kind; a student learns nothing from one that is its equal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kind_files import CONFIG

from ground.tensors import ops
from modeling import Computation, Config
from modeling.differentiation import gradient
from tasks.choice import ChoiceTask
from tasks.classification import ClassificationTask
from tasks.decisions import EACH, ONE_OF, VALUE, Decisions, divergence
from tasks.distillation import NAME, Distillation, DistilledTask
from tasks.matching import MatchingTask
from tasks.multilabel import MultilabelTask
from tasks.regression import RegressionTask
from tasks.regularization import RDrop
from tasks.span import SpanTask
from tasks.tagging import TaggingTask

STILL: Any = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SMALL = Config.from_json({**CONFIG, **STILL})
LARGE = dataclasses.replace(
    SMALL, family="albert", sharing="all", hidden_size=12, embedding_size=4, num_hidden_layers=2, num_attention_heads=3
)
SEED = np.array([1, 2], "uint32")


def features(lengths: Any, length: int = 6) -> dict[str, Any]:
    lengths = np.array(lengths)
    mask = (np.arange(length) < lengths[..., None]).astype(np.int32)
    ids = np.random.default_rng(3).integers(1, 15, mask.shape).astype(np.int32) * mask
    return {"input_ids": ids, "input_mask": mask, "segment_ids": np.zeros_like(mask)}


ROWS, GROUPS = features([6, 4, 0]), features([[6, 3], [4, 2], [0, 0]])
LABELS = np.array([2, 1, 0], np.int32)
# The batch of every kind; its last example only fills it up.
KINDS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "classification": (lambda config, **more: ClassificationTask(config, 3, **more), {**ROWS, "label_ids": LABELS}),
    "regression": (RegressionTask, {**ROWS, "label_ids": LABELS.astype(np.float32)}),
    "multilabel": (
        lambda config, **more: MultilabelTask(config, 2, **more),
        {**ROWS, "label_ids": np.array([[1, 0], [1, 1], [0, 0]], np.int32)},
    ),
    "choice": (ChoiceTask, {**GROUPS, "label_ids": np.array([1, 0, 0], np.int32)}),
    "tagging": (
        lambda config, classifier_dropout, **more: TaggingTask(config, 3, dropout=classifier_dropout, **more),
        {**ROWS, "label_ids": ROWS["input_ids"] % 3, "label_weights": ROWS["input_mask"] * [0, 1, 1, 1, 0, 0]},
    ),
    "span": (
        lambda config, classifier_dropout, **more: SpanTask(config, dropout=classifier_dropout, **more),
        {**ROWS, "label_ids": np.array([[1, 2], [-1, -1], [0, 0]], np.int32)},
    ),
    "matching": (MatchingTask, {**GROUPS, "label_ids": LABELS}),
    "graded matching": (
        lambda config, **more: MatchingTask(config, score_range=(0.0, 2.0), **more),
        {**GROUPS, "label_ids": LABELS.astype(np.float32)},
    ),
}


class Trained:
    """A teacher with the weights that its seed gives."""

    def __init__(self, task: Any):
        self.task, self.config = task, task.config

    def build(self) -> keras.Model:
        return self.task.build_model()


def made(kind: str, config: Config, seed: int, **more: Any) -> Any:
    return KINDS[kind][0](config, classifier_dropout=0.0, computation=Computation(seed=seed), **more)


def taught(kind: str, config: Config, seed: int, **settings: Any) -> DistilledTask:
    task = Distillation(Trained(made(kind, config, seed)), **settings)(made(kind, SMALL, 1))
    task.companions()
    return task


def losses(task: Any, batch: Any, *, training: bool = True) -> dict[str, tuple[float, float]]:
    tensors = {name: ops.convert_to_tensor(value) for name, value in batch.items()}
    found, _ = task.terms(task.build_model(), tensors, seed=SEED, training=training)
    counts = task.normalizers(tensors)
    if training:
        assert {name: float(weight) for name, (_, weight) in found.items()} == pytest.approx(
            {name: float(count) for name, count in counts.items()}
        )
    return {name: (float(total), float(weight)) for name, (total, weight) in found.items()}


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def numpy_divergence(s: np.ndarray, t: np.ndarray, temperature: float) -> np.ndarray:
    p, q = softmax(t / temperature), softmax(s / temperature)
    return temperature**2 * (p * np.log(p / q)).sum(axis=-1)


def apart(student: Any, teacher: Any, temperature: float, form: str = ONE_OF) -> np.ndarray:
    both = [Decisions(ops.convert_to_tensor(x, "float32"), ops.ones(len(x)), form) for x in (student, teacher)]
    return ops.convert_to_numpy(divergence(*both, temperature))


LOGITS = st.lists(st.floats(-5, 5, width=32), min_size=3, max_size=3)


@settings(max_examples=30, deadline=None)
@given(LOGITS, LOGITS, st.floats(-20, 20), st.floats(1, 10))
def test_divergence_is_numpys_not_negative_and_blind_to_a_shift_of_the_students_logits(s, t, shift, temperature):
    student, teacher = np.array([s]), np.array([t])
    found = apart(student, teacher, temperature)
    np.testing.assert_allclose(found, numpy_divergence(student, teacher, temperature), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(apart(student + shift, teacher, temperature), found, rtol=1e-3, atol=1e-2)
    assert found >= -1e-4
    assert apart(teacher, teacher, temperature) == pytest.approx(0, abs=1e-5)


def test_the_example_of_the_docstring_labels_by_themselves_and_values():
    assert apart([[0.0, 0.0]], [[2.0, 0.0]], 2.0) == pytest.approx([0.4437], abs=1e-4)
    s, t = np.array([[0.5, -3.0]]), np.array([[2.0, 1.0]])
    pairs = [numpy_divergence(*(np.stack([x[0], 0 * x[0]], axis=-1) for x in (s, t)), 3.0)]
    assert apart(s, t, 3.0, EACH) == pytest.approx(np.mean(pairs), rel=1e-4)
    assert apart([[1.5]], [[4.0]], 3.0, VALUE) == pytest.approx([6.25])
    # A sigmoid that is nearly 1 has a logarithm all the same.
    assert np.isfinite(apart([[80.0]], [[-80.0]], 1.0, EACH)).all()


def test_the_scale_of_the_gradient_hardly_depends_on_a_high_temperature():
    student, teacher = np.array([[1.0, -0.5, 0.2]]), np.array([[0.3, 0.4, -1.0]])

    def size(temperature: float) -> float:
        def loss(logits: Any) -> Any:
            ours, theirs = (Decisions(x, ops.ones(1)) for x in (logits, ops.convert_to_tensor(teacher, "float32")))
            return ops.sum(divergence(ours, theirs, temperature))

        found = gradient(loss, ops.convert_to_tensor(student, "float32"))
        return float(np.abs(ops.convert_to_numpy(found)).sum())

    assert size(20.0) == pytest.approx(size(80.0), rel=0.05)
    # In the limit it is the difference of the centred logits over C.
    centred = [x - x.mean() for x in (student, teacher)]
    assert size(80.0) == pytest.approx(np.abs(centred[0] - centred[1]).sum() / 3, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_equal_teacher_teaches_nothing_another_does_and_filling_rows_do_not_count(kind: str):
    batch = KINDS[kind][1]
    assert losses(taught(kind, SMALL, 1), batch)[NAME][0] == pytest.approx(0, abs=1e-5)
    task = taught(kind, LARGE, 5)
    total, weight = losses(task, batch)[NAME]
    assert total > 1e-6
    others = [name for name in losses(task, batch) if name != NAME]
    plain = losses(made(kind, SMALL, 1), batch)
    assert {name: losses(task, batch)[name] for name in others} == plain
    assert task.loss_weights[NAME] == 0.5
    refilled = {name: np.concatenate([value[:2]] + [value[2:]] * 2) for name, value in batch.items()}
    assert losses(task, refilled)[NAME] == pytest.approx((total, weight), rel=1e-4)
    assert losses(task, batch, training=False)[NAME] == (0.0, 0.0)


@pytest.mark.slow
def test_the_loss_is_that_of_both_models_logits():
    batch = KINDS["classification"][1]
    task = taught("classification", LARGE, 5, weight=0.25, temperature=3.0)
    student, teacher = made("classification", SMALL, 1).build_model(), made("classification", LARGE, 5).build_model()
    s, t = (ops.convert_to_numpy(model(ROWS)["logits"])[:2].astype(float) for model in (student, teacher))
    found = losses(task, batch)
    assert found[NAME][0] == pytest.approx(numpy_divergence(s, t, 3.0).sum(), rel=1e-3)
    assert found["classification"][0] == pytest.approx(-np.log(softmax(s)[[0, 1], LABELS[:2]]).sum(), rel=1e-4)
    assert task.loss_weights == {"classification": 0.75, NAME: 0.25}


def test_all_of_the_weight_leaves_nothing_to_labels_and_all_to_other_losses():
    student = made("classification", SMALL, 1, regularizers=[RDrop(2.0)])
    task = Distillation(Trained(student), weight=1.0)(student)
    assert task.loss_weights == {"classification": 0.0, "r_drop": 2.0, NAME: 1.0}


def test_two_teachers_are_equal_only_if_they_are_one():
    one, two = (Trained(made("classification", SMALL, 1)) for _ in range(2))
    assert Distillation(one) == Distillation(one)
    assert Distillation(one) != Distillation(two)
    assert Distillation(one) != Distillation(one, temperature=3.0)
