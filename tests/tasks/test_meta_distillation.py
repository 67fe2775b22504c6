"""MetaKD: typicality and expertise by hand, weights of examples that act by themselves, domains that help nobody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from test_layer_distillation import BATCH, LARGE, SEED, SMALL, Trained

from ground.tensors import named_variables, ops
from modeling import Computation
from modeling.differentiation import variable_gradients
from tasks.classification import ClassificationTask
from tasks.distillation import NAME, TYPICALITY, Distillation, expertise
from tasks.losses import IMPORTANCE
from tasks.meta_distillation import DOMAINS, DomainDataset, MetaTeaching, facts_of, typicality
from tasks.meta_distillation import NAME as CORRUPTION

RIGHT = {**BATCH, IMPORTANCE: np.array([0.5, 0.8, 0.0], np.float32), DOMAINS: np.array([2, 1, 0], np.int32)}


def task() -> ClassificationTask:
    return ClassificationTask(SMALL, 2, classifier_dropout=0.0, computation=Computation(seed=1))


def losses(found: Any, model: Any, batch: Any, *, training: bool = True) -> dict[str, tuple[float, float]]:
    tensors = {name: ops.convert_to_tensor(value) for name, value in batch.items()}
    terms, _ = found.terms(model, tensors, seed=SEED, training=training)
    counts = found.normalizers(tensors)
    for name, (_, weight) in terms.items():
        assert not training or float(weight) == pytest.approx(float(counts[name])), name
    return {name: (float(total), float(weight)) for name, (total, weight) in terms.items()}


def test_typicality_is_half_of_the_own_domain_and_half_of_the_others_within_a_class():
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
    found = typicality(vectors, np.array([0, 0, 1]), np.zeros(3, int))
    assert found == pytest.approx([2**-0.5, 2**-0.5, 1.0])
    # A class of its own has no others.
    assert typicality(vectors, np.array([0, 0, 1]), np.array([0, 0, 1]))[2] == pytest.approx(1.0)
    rng = np.random.default_rng(0)
    vectors, domains, classes = rng.normal(size=(12, 5)), np.arange(12) % 3, np.arange(12) % 2

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    for row, value in enumerate(typicality(vectors, domains, classes)):
        means = [vectors[(domains == d) & (classes == classes[row])].mean(axis=0) for d in range(3)]
        own = means.pop(domains[row])
        assert value == pytest.approx((cosine(vectors[row], own) + cosine(vectors[row], np.mean(means, axis=0))) / 2)


def test_expertise_is_1_for_what_is_known_and_typical():
    scores = ops.convert_to_tensor(np.array([[50.0, 0.0], [50.0, 0.0], [0.0, 0.0]], np.float32))
    labels, typical = np.array([0, 1, 0], np.int32), np.array([1.0, 1.0, 0.5], np.float32)
    found = ops.convert_to_numpy(expertise(scores, labels, typical))
    assert found == pytest.approx([1.0, 2 / (np.e + 1), 1.5 / (np.exp(0.25) + 1)], rel=1e-5)


@pytest.mark.slow
def test_a_teacher_weighs_examples_by_typicality_and_has_a_branch_of_domains():
    meta = MetaTeaching(3, weight=0.25)(task())
    model = meta.build_model()
    assert {name for name in named_variables(model) if name.startswith("scaffold/")} == {
        "scaffold/domain/kernel",
        *(f"scaffold/{part}/{what}" for part in ("mixed", "scores") for what in ("kernel", "bias")),
    }
    found = losses(meta, model, RIGHT)
    each = [losses(task(), model, {name: value[row : row + 1] for name, value in BATCH.items()}) for row in (0, 1)]
    wanted = sum(weight * own["classification"][0] for weight, own in zip((0.5, 0.8), each, strict=True))
    assert found["classification"] == pytest.approx((wanted, 1.3), rel=1e-4)
    assert found[CORRUPTION][0] > 0
    assert meta.loss_weights == {"classification": 1.0, CORRUPTION: 0.25}
    assert losses(meta, model, BATCH, training=False)[CORRUPTION] == (0.0, 0.0)


@pytest.mark.slow
def test_the_weight_of_one_example_turns_the_gradient_of_a_student():
    teacher = Trained(LARGE, 5)
    student = Distillation(teacher, weight=1.0)(task())
    student.companions()
    model = student.build_model()
    kernel = named_variables(model)["classifier/kernel"]

    def direction(*typical: float) -> np.ndarray:
        batch = {**BATCH, TYPICALITY: np.array([*typical, 0.0], np.float32)}
        tensors = {name: ops.convert_to_tensor(value) for name, value in batch.items()}

        def loss(batch: Any, number: Any) -> Any:
            return student.terms(model, batch, seed=SEED, training=True)[0][NAME][0]

        (found,) = variable_gradients(loss, [kernel])(tensors, ops.convert_to_tensor(0, "int32"))
        found = ops.convert_to_numpy(found)
        return found / np.linalg.norm(found)

    np.testing.assert_allclose(direction(0.3, 0.3), direction(0.3, 0.3), atol=1e-6)
    assert np.abs(direction(0.1, 0.9) - direction(0.9, 0.1)).max() > 1e-3
    # It is not one factor for all: what both have in common changes no direction.
    plain, weighed = (
        losses(student, model, batch)[NAME][0] for batch in (BATCH, {**BATCH, TYPICALITY: np.ones(3, "f")})
    )
    assert 0 < weighed < plain


class OneBatch:
    """A data set of one batch, whose rows are evaluated backwards."""

    num_examples = 2

    def batch(self, step: int) -> dict[str, np.ndarray]:
        return BATCH

    def evaluation_batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        yield {name: value[[1, 0, 2]] for name, value in BATCH.items()}

    def evaluation_order(self) -> np.ndarray:
        return np.array([1, 0])


def test_batches_bring_the_typicality_and_the_domain_of_each_example():
    vectors = {"vector": np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]], np.float32)}
    dataset: Any = OneBatch()
    facts = facts_of(dataset, [4, 7], [0, 0], lambda batches: (vectors for _ in batches), 8)
    found = DomainDataset(dataset, facts, teaches=True).batch(0)
    # Each is its own mean and at right angles with the other's: (1 + 0) / 2.
    assert found[IMPORTANCE].tolist() == [0.5, 0.5, 0.0]
    assert found[DOMAINS].tolist() == [4, 7, 0]
    student = DomainDataset(dataset, facts, teaches=False)
    assert student.num_examples == 2
    (evaluated,) = student.evaluation_batches(8)
    assert evaluated[TYPICALITY].tolist() == [0.5, 0.5, 0.0]
    assert DOMAINS not in evaluated
