"""CAP's contrastive terms against NumPy: InfoNCE and SupCon as published, the released scale, and a bank by content."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_layer_distillation import BATCH, SEED, SMALL
from test_meta_distillation import OneBatch as Backwards

from ground.tensors import ops
from modeling import Computation
from tasks.classification import ClassificationTask
from tasks.contrastive_pruning import ROWS, BankDataset, Contrast, bank_of, contrastive_losses, empty_bank

TAU = 0.1


def normed(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_hand(z: Any, labels: Any, rows: Any, bank: Any, bank_labels: Any, bank_rows: Any) -> tuple[list, list, list]:
    """Return both losses of each example, and how many positives each has, with loops and float64."""
    texts, alike, counts = [], [], []
    for i, own in enumerate(z):
        others = [(z[j], labels[j], None) for j in range(len(z)) if j != i and rows[j] >= 0]
        others += [each for each in zip(bank, bank_labels, bank_rows, strict=True) if each[2] >= 0]
        logits = np.array([own @ other for other, _, _ in others], np.float64) / TAU
        logs = logits - np.log(np.exp(logits).sum())
        positives = [
            [log for log, (_, _, row) in zip(logs, others, strict=True) if row == rows[i]],
            [log for log, (_, label, _) in zip(logs, others, strict=True) if label == labels[i]],
        ]
        texts.append(-np.mean(positives[0]))
        alike.append(-np.mean(positives[1]))
        counts.append([len(each) for each in positives])
    return texts, alike, counts


@pytest.mark.parametrize("snapshots", [1, 3])
def test_both_losses_are_the_published_ones(snapshots: int):
    rng = np.random.default_rng(snapshots)
    z, vectors = normed(rng.normal(size=(4, 6))), normed(rng.normal(size=(9, snapshots, 6)))
    labels, rows = np.array([0, 1, 0, 1]), np.array([3, 7, 2, 8])
    of_bank = np.concatenate([rows, [7, 1, 5, -1]])  # a text of the batch may be drawn too
    bank = vectors[np.maximum(of_bank, 0)].reshape(-1, 6)
    bank_labels = np.repeat(rng.integers(0, 2, 9)[np.maximum(of_bank, 0)], snapshots)
    bank_rows = np.repeat(of_bank, snapshots)
    found = contrastive_losses(
        ops.convert_to_tensor(z, "float32"),
        labels.astype(np.int32),
        rows.astype(np.int32),
        ops.convert_to_tensor(bank, "float32"),
        bank_labels.astype(np.int32),
        bank_rows.astype(np.int32),
        TAU,
    )
    *wanted, counts = by_hand(z, labels, rows, bank, bank_labels, bank_rows)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(ours), theirs, rtol=1e-4)
    assert [texts for texts, _ in counts] == [snapshots, 2 * snapshots, snapshots, snapshots]


def test_an_example_that_fills_up_is_nobodys_neighbour():
    z = ops.convert_to_tensor(normed(np.random.default_rng(0).normal(size=(3, 4))), "float32")
    labels, rows = np.array([0, 1, 0], np.int32), np.array([0, 1, -1], np.int32)

    def losses(count: int) -> np.ndarray:
        given = (z[:count], labels[:count], rows[:count], z[:2], labels[:2], rows[:2], TAU)
        return np.stack([ops.convert_to_numpy(each)[:2] for each in contrastive_losses(*given)])

    np.testing.assert_allclose(losses(3), losses(2), rtol=1e-6)


class OneBatch(Backwards):
    steps_per_epoch = 1


def vectors_of(scale: float) -> Any:
    def predict(batches: Any) -> Any:
        for batch in batches:
            yield {"vector": normed(scale + batch["input_ids"].astype(np.float32)[:, :8])}

    return predict


def test_a_bank_knows_texts_by_what_a_model_reads_of_them():
    bank = bank_of(OneBatch(), {"pretrained": [vectors_of(0.5)], "snapshots": [vectors_of(1.0), vectors_of(2.0)]}, 3)
    assert bank.sources == [("pretrained", 0, 1), ("snapshots", 1, 3)]
    assert bank.vectors.shape[:2] == (2, 3)
    batch = BankDataset(OneBatch(), bank, seed=1).batch(0)
    for place, row in enumerate(batch[ROWS][:2, 0]):
        wanted = normed(1.0 + BATCH["input_ids"][place].astype(np.float32))
        np.testing.assert_allclose(bank.vectors[row, 1], wanted, rtol=1e-6)
        assert bank.labels[row] == BATCH["label_ids"][place]
    assert batch[ROWS][2, 0] == -1
    assert sorted(batch[ROWS][:, 1:].ravel().tolist()) == [-1, 0, 1]


@pytest.mark.slow
def test_a_task_adds_the_terms_in_training_alone():
    bank = empty_bank(8, [("pretrained", 1), ("snapshots", 2)])
    task = Contrast(bank, 0.5, 2.0, TAU)(ClassificationTask(SMALL, 2, computation=Computation(seed=1)))
    model = task.build_model()
    (companion,) = task.companions().values()
    companion.vectors.assign(normed(np.ones((1, 3, 8), np.float32)))
    companion.labels.assign(BATCH["label_ids"][:1].astype(np.float32))
    batch = {**BATCH, ROWS: np.array([[0, -1], [-1, -1], [-1, -1]], np.int32)}
    tensors = {name: ops.convert_to_tensor(value) for name, value in batch.items()}
    losses, _ = task.terms(model, tensors, seed=SEED, training=True)
    counts = task.normalizers(tensors)
    plain = ClassificationTask(SMALL, 2, computation=Computation(seed=1))
    alone, _ = plain.terms(model, {n: v for n, v in tensors.items() if n != ROWS}, seed=SEED, training=True)
    assert float(losses["classification"][0]) == pytest.approx(float(alone["classification"][0]), rel=1e-5)
    for name in ("contrast_pretrained", "contrast_snapshots"):
        assert float(losses[name][1]) == float(counts[name]) == 1.0
    # Of one vector nothing else could be meant; of two equal ones each is half of the answer.
    assert float(losses["contrast_pretrained"][0]) == pytest.approx(0.0, abs=1e-5)
    assert float(losses["contrast_snapshots"][0]) == pytest.approx(2.5 * np.log(2), rel=1e-4)
    told, _ = task.terms(model, tensors, seed=SEED, training=False)
    assert float(told["contrast_pretrained"][1]) == 0.0
