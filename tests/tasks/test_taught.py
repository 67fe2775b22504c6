"""Batches that bring a teacher's scores: the loss of a live teacher, by the content of examples, asked once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from test_distillation import GROUPS, KINDS, LARGE, ROWS, SMALL, Trained, losses, made

from data.labelled import ClassificationDataset, EncodedExamples
from ground.tensors import ops
from tasks.distillation import NAME, TAUGHT, Distillation
from tasks.taught import ScoringTask, TaughtDataset, content_keys, taught


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIVAN_CACHE", str(tmp_path))


class OneBatch:
    """A data set of one batch."""

    def __init__(self, batch: dict[str, np.ndarray]):
        self._batch, self.num_examples, self.name = batch, len(batch["label_ids"]), "one"

    def batch(self, step: int) -> dict[str, np.ndarray]:
        return self._batch

    def evaluation_batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        yield self._batch


class Predictor:
    """Runs a scoring task operation by operation, and counts its batches."""

    def __init__(self, teacher: Any):
        self.task, self.batches = ScoringTask(teacher), 0
        self.model: keras.Model = self.task.build_model()

    def __call__(self, batches: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, np.ndarray]]:
        for batch in batches:
            self.batches += 1
            tensors = {name: ops.convert_to_tensor(value) for name, value in batch.items()}
            yield {name: ops.convert_to_numpy(x) for name, x in self.task.predictions(self.model, tensors).items()}


def test_an_example_is_known_by_its_tokens_alone():
    keys = content_keys(ROWS)
    assert len({*keys}) == 3
    assert keys[2] == b""
    wide = {name: np.pad(value, [(0, 0), (0, 3)]) for name, value in ROWS.items()}
    assert content_keys(wide) == keys
    turned = {name: value[::-1] for name, value in ROWS.items()}
    assert content_keys(turned) == keys[::-1]
    for name in ("input_ids", "segment_ids"):
        changed = {**ROWS, name: ROWS[name] + np.array([[0, 1, 0, 0, 0, 0]], np.int32)}
        assert content_keys(changed)[0] != keys[0]
    # The same tokens in one row and in two.
    grouped = {name: np.pad(value, [(0, 0), (0, 1), (0, 0)]) for name, value in GROUPS.items()}
    assert content_keys(grouped) == content_keys(GROUPS)
    joined = {name: value.reshape(3, 12) for name, value in GROUPS.items()}
    assert content_keys(joined)[0] != content_keys(GROUPS)[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_cached_teacher_gives_the_loss_of_a_live_one(kind: str):
    batch = KINDS[kind][1]
    teacher = Trained(made(kind, LARGE, 5))
    predict = Predictor(teacher)
    scores, left = taught(OneBatch(batch), 8, "a" * 64, predict)  # pyright: ignore[reportArgumentType]
    assert (len(scores), left, predict.batches) == (2, 0, 1)
    again, left = taught(OneBatch(batch), 8, "a" * 64, predict)  # pyright: ignore[reportArgumentType]
    assert (len(again), left, predict.batches) == (2, 2, 1)
    dataset = TaughtDataset(OneBatch(batch), again)  # pyright: ignore[reportArgumentType]
    assert dataset.name == "one"
    live = Distillation(teacher)(made(kind, SMALL, 1))
    live.companions()
    cached = Distillation(teacher, cached=True)(made(kind, SMALL, 1))
    assert cached.companions() == {}
    found, wanted = losses(cached, dataset.batch(0)), losses(live, batch)
    assert found == {name: pytest.approx(value, rel=1e-4, abs=1e-5) for name, value in wanted.items()}
    assert found[NAME][0] > 0
    assert [TAUGHT in each for each in dataset.evaluation_batches(8)] == [True]


@pytest.mark.slow
def test_new_examples_are_asked_for_and_known_ones_are_not():
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 15, (8, 6), dtype=np.int32)

    def dataset(rows: Any) -> ClassificationDataset:
        flat = ids[rows].ravel()
        splits = np.arange(len(rows) + 1, dtype=np.int64) * 6
        return ClassificationDataset(EncodedExamples(flat, 0 * flat, splits, np.zeros(len(rows), np.int32)), 2, 8)

    predict = Predictor(Trained(made("classification", LARGE, 5)))
    taught(dataset([0, 1, 2, 3]), 2, "a" * 64, predict)
    assert predict.batches <= 2
    before = predict.batches
    scores, left = taught(dataset([3, 2, 1, 0, 5]), 1, "a" * 64, predict)
    assert (len(scores), left, predict.batches - before) == (5, 4, 1)
    # Another teacher knows nothing of it.
    _, left = taught(dataset([0]), 1, "b" * 64, predict)
    assert left == 0
    wanted = predict.model({name: value for name, value in dataset([5]).batch(0).items() if name != "label_ids"})
    found = TaughtDataset(dataset([5]), scores).batch(0)[TAUGHT]
    np.testing.assert_allclose(found[0, 0, 0, 0], ops.convert_to_numpy(wanted["logits"])[0], atol=1e-5)
